//! Has the program begin in `src/entry.rs`.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let target = |part: &str| std::env::var(format!("CARGO_CFG_TARGET_{part}")).unwrap_or_default();
    if target("OS") == "linux" && target("ARCH") == "x86_64" {
        println!("cargo::rustc-link-arg-bin=rorqual-runtime=-Wl,--entry=rorqual_entry");
    }
}
