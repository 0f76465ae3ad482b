//! The generated code in `src/wire/` is checked in, so that nobody who builds Rorqual needs a protobuf
//! compiler. This test keeps it fresh; `RORQUAL_GENERATE=1 cargo test -p rorqual-proto --test generated`
//! writes it anew after a change of a `.proto` file.

use std::fs;
use std::path::Path;

const FILES: [&str; 6] = ["specs", "objects", "control", "dispatch", "raft", "engine"];

#[test]
fn generated_code_is_fresh() -> Result<(), Box<dyn std::error::Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files: Vec<_> = FILES.iter().map(|name| format!("rorqual/v1/{name}.proto")).collect();
    let descriptors = protox::compile(&files, [root])?;
    let out = tempfile::tempdir()?;
    tonic_prost_build::configure()
        .out_dir(out.path())
        .btree_map(".")
        .skip_debug([".rorqual.v1.RegistryCredentials"])
        .bytes(".rorqual.v1.BlobPiece.data")
        .bytes(".rorqual.v1.RaftMessage.data")
        .bytes(".rorqual.v1.LoadImageRequest.data")
        .bytes(".rorqual.v1.ImportImageRequest.data")
        .bytes(".rorqual.v1.ArchivePiece.data")
        .bytes(".rorqual.v1.LogLine.data")
        .bytes(".rorqual.v1.ContextAnswer.data")
        .bytes(".rorqual.v1.BuildResponse.output")
        .bytes(".rorqual.v1.BuildResponse.cache")
        .bytes(".rorqual.v1.BuildEvent.data")
        .build_transport(true)
        .emit_rerun_if_changed(false)
        .compile_fds(descriptors)?;
    let fresh = fs::read_to_string(out.path().join("rorqual.v1.rs"))?;
    let kept = root.join("src/wire/rorqual.v1.rs");
    if std::env::var_os("RORQUAL_GENERATE").is_some() {
        fs::write(&kept, &fresh)?;
    }
    assert!(
        fs::read_to_string(&kept).unwrap_or_default() == fresh,
        "src/wire/rorqual.v1.rs is stale: run this test with RORQUAL_GENERATE=1"
    );
    Ok(())
}
