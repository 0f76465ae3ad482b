//! Dockerfiles in the manner of real ones, and what is read of them: `tests/dockerfiles/*.dockerfile` and, beside
//! each, what it comes to. `RORQUAL_GOLDEN=1 cargo test -p rorqual-image --test dockerfiles` writes those anew.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fmt::Write;
use std::fs;
use std::path::Path;

use proptest::prelude::*;
use rorqual_image::build::dockerfile::Dockerfile;
use rorqual_image::build::ignore::Ignore;
use rorqual_image::build::pattern::Pattern;

fn shown(file: &Dockerfile) -> String {
    let mut text = format!("{:?}\n", file.directives);
    let mut line = |instruction: &rorqual_image::build::dockerfile::Instruction| {
        let place = &instruction.place;
        writeln!(text, "{}-{} {}\n    {:?}", place.first, place.last, instruction.text, instruction.kind)
            .unwrap();
    };
    file.global_args.iter().for_each(&mut line);
    for stage in &file.stages {
        line(&stage.instruction);
        stage.instructions.iter().for_each(&mut line);
    }
    text
}

#[test]
fn real_ones_are_read_as_they_were() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/dockerfiles");
    let mut count = 0;
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|kind| kind != "dockerfile") {
            continue;
        }
        count += 1;
        let name = path.file_name().unwrap().to_str().unwrap();
        let file = Dockerfile::parse(name, &fs::read_to_string(&path).unwrap());
        let fresh = shown(&file.unwrap_or_else(|error| panic!("{error}")));
        let golden = path.with_extension("golden");
        if std::env::var_os("RORQUAL_GOLDEN").is_some() {
            fs::write(&golden, &fresh).unwrap();
        }
        assert_eq!(fs::read_to_string(&golden).unwrap_or_default(), fresh, "{name}");
    }
    assert!(count >= 8, "only {count} were found");
}

/// Pieces of which most Dockerfiles consist, and much that none has.
fn line() -> impl Strategy<Value = String> {
    let words = prop_oneof![
        Just("FROM a AS b"),
        Just("RUN <<EOF"),
        Just("EOF"),
        Just("COPY --from=b <<x <<-'y' /z/"),
        Just("x"),
        Just("y"),
        Just("ENV A=1 \\"),
        Just("# escape=`"),
        Just("ONBUILD RUN x"),
        Just("ARG A=${B:-${C}}"),
        Just("CMD [\"a\", \"b\"]"),
        Just("HEALTHCHECK --interval=1s CMD x"),
        Just("\\"),
        Just("`"),
        Just("\"'"),
        Just("$\u{0}${"),
        Just("\t#"),
    ];
    prop_oneof![4 => words.prop_map(str::to_owned), 1 => ".{0,40}"]
}

proptest! {
    /// Whatever it is, it is read or refused, twice the same, and places are lines of the file.
    #[test]
    fn any_text_is_read_or_refused(lines in proptest::collection::vec(line(), 0..20)) {
        let text = lines.join("\n");
        let (one, two) = (Dockerfile::parse("D", &text), Dockerfile::parse("D", &text));
        prop_assert_eq!(&one, &two);
        match one {
            Ok(file) => for stage in &file.stages {
                for instruction in &stage.instructions {
                    let place = &instruction.place;
                    prop_assert!(place.first <= place.last && place.last <= text.lines().count());
                    prop_assert!(text.contains(place.text.lines().next().unwrap_or_default()));
                }
            },
            Err(error) => prop_assert!(error.to_string().starts_with("D:")),
        }
    }

    /// A pattern without special characters describes itself alone; a star takes the place of anything in a name.
    #[test]
    fn patterns_describe_what_they_say(name in "[a-z.]{1,12}", other in "[a-z.]{1,12}", at in 0usize..12) {
        prop_assert!(Pattern::new(&name).unwrap().matches(&name));
        prop_assert_eq!(Pattern::new(&name).unwrap().matches(&other), name == other);
        let at = at.min(name.len());
        let starred = Pattern::new(&format!("{}*", &name[..at])).unwrap();
        let below = format!("{name}/x");
        prop_assert!(starred.matches(&name) && !starred.matches(&below));
    }

    /// What is taken back in is there, and everything below a folder that is left out is left out.
    #[test]
    fn ignoring_goes_down_and_the_last_line_wins(path in "[a-z]{1,4}(/[a-z]{1,4}){0,3}") {
        let below = format!("{path}/deeper/x");
        let ignore = Ignore::parse(&path).unwrap();
        prop_assert!(ignore.excludes(&path) && ignore.excludes(&below) && ignore.prunes(&path));
        let back = Ignore::parse(&format!("**\n!{below}\n")).unwrap();
        prop_assert!(!back.excludes(&below) && back.excludes("other") && !back.prunes(&path));
    }
}
