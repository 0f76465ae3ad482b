//! What the reader of Dockerfiles takes, and what it says of what it does not take.

use super::*;

fn parse(text: &str) -> Dockerfile {
    Dockerfile::parse("Dockerfile", text).unwrap_or_else(|error| panic!("{error}"))
}

fn kinds(text: &str) -> Vec<Kind> {
    let mut file = parse(&format!("FROM a\n{text}"));
    file.stages.remove(0).instructions.into_iter().map(|instruction| instruction.kind).collect()
}

fn refused(text: &str) -> String {
    Dockerfile::parse("Dockerfile", text).expect_err(text).to_string()
}

#[test]
fn an_error_shows_file_line_and_text() {
    let error = refused("FROM a\n\n# why\nRUNN \\\n  make\nCMD x\n");
    assert_eq!(
        error,
        "Dockerfile:4: unknown instruction `RUNN`: did you mean RUN?\n   4 | RUNN \\\n   5 |   make"
    );
    for (text, part) in [
        ("", "has no FROM"),
        ("RUN x\nFROM a\n", "only ARG may stand"),
        ("FROM a b\n", "AS and a name"),
        ("FROM a AS 1x\n", "`1x` can't be the name"),
        ("FROM a\nENV A\n", "NAME=VALUE"),
        ("FROM a\nENV A=1 B\n", "not `B`"),
        ("FROM a\nENV\n", "ENV wants an argument"),
        ("FROM a\nCOPY x\n", "at least one source"),
        ("FROM a\nCOPY --chwon=1 a b\n", "COPY has no flag `--chwon`"),
        ("FROM a\nRUN\n", "RUN wants an argument"),
        ("FROM a\nSHELL bash\n", "JSON array"),
        ("FROM a\nEXPOSE\n", "at least one"),
        ("FROM a\nRUN <<EOF\nx\n", "`EOF` does not end"),
        ("FROM a\nHEALTHCHECK --interval=soon CMD x\n", "a duration such as"),
        ("FROM a\nHEALTHCHECK x\n", "wants CMD or NONE"),
        ("FROM a\nONBUILD ONBUILD RUN x\n", "another ONBUILD"),
        ("FROM a\nONBUILD FROM x\n", "can't hold FROM"),
        ("FROM a\nONBUILD NOPE\n", "unknown instruction `NOPE`"),
        ("# escape=x\nFROM a\n", "can't be the escape character"),
        ("FROM a\nCOPY \"a b c\n", "double quote"),
    ] {
        let error = refused(text);
        assert!(error.contains(part), "{text:?}: {error}");
    }
}

#[test]
fn lines_go_on_with_comments_in_between() {
    let file = parse(
        "# syntax=docker/dockerfile:1\n# escape=`\nfrom a as Base\nrun one `\n# no\n\n  two\\ `  \n three\n",
    );
    assert_eq!(file.directives.syntax.as_deref(), Some("docker/dockerfile:1"));
    assert_eq!(file.stages[0].from.name.as_deref(), Some("base"));
    let run = &file.stages[0].instructions[0];
    assert_eq!(run.text, "RUN one   two\\  three");
    assert_eq!((run.place.first, run.place.last), (4, 8));
}

#[test]
fn a_doubled_escape_does_not_continue_a_line() {
    let [Kind::Run(run), Kind::Run(_)] = &kinds("RUN a \\\\\nRUN b\n")[..] else { panic!() };
    assert_eq!(run.command, Command::Shell("a \\\\".into()));
}

#[test]
fn both_forms_of_env_and_of_commands() {
    assert_eq!(
        kinds("ENV A b c\nENV B=\"x y\" C=z\\ w\nCMD [\"x\", \"y\"]\nCMD [\"x\", 'y']\nENTRYPOINT []\n"),
        [
            Kind::Env(vec![("A".into(), "b c".into())]),
            Kind::Env(vec![("B".into(), "\"x y\"".into()), ("C".into(), "z\\ w".into())]),
            Kind::Cmd(Command::Exec(vec!["x".into(), "y".into()])),
            Kind::Cmd(Command::Shell("[\"x\", 'y']".into())),
            Kind::Entrypoint(Command::Exec(vec![])),
        ]
    );
}

#[test]
fn here_documents_keep_their_names_and_their_places() {
    let text = "RUN <<EOF cat && python3 <<-'PY'\nhello\nEOF\n\tprint(1)\n\tPY\n\
                COPY <<x.txt <<\"y\" z /d/\n$A\nx.txt\n$B\ny\nRUN cat <<<word\nRUN echo '<<EOF'\n";
    let [Kind::Run(run), Kind::Copy(copy), Kind::Run(none), Kind::Run(quoted)] = &kinds(text)[..] else {
        panic!()
    };
    let names: Vec<_> = run.heredocs.iter().map(|doc| (doc.name.as_str(), doc.expand, doc.text())).collect();
    assert_eq!(names, [("EOF", true, "hello\n".into()), ("PY", false, "print(1)\n".into())]);
    assert_eq!(run.command, Command::Shell("<<EOF cat && python3 <<-'PY'".into()));
    assert_eq!((copy.sources.as_slice(), copy.destination.as_str()), (&["z".to_owned()][..], "/d/"));
    assert_eq!((copy.heredocs[0].expand, copy.heredocs[1].expand), (true, false));
    assert!(none.heredocs.is_empty() && quoted.heredocs.is_empty());
}

#[test]
fn flags_stand_in_front_and_may_be_quoted() {
    let [Kind::Copy(copy), Kind::Run(run), Kind::Cmd(cmd)] = &kinds(
        "COPY --from=b --chown=\"$U\":1 --link --exclude=*.md --exclude=x a \"b c\" d/\n\
         RUN --mount=type=cache,target=/x \\\n  --network=none make --jobs\nCMD --help\n",
    )[..] else {
        panic!()
    };
    assert_eq!((copy.from.as_deref(), copy.chown.as_deref(), copy.link), (Some("b"), Some("$U:1"), true));
    assert_eq!(
        (copy.excludes.len(), copy.sources.as_slice()),
        (2, &["a".to_owned(), "\"b c\"".to_owned()][..])
    );
    assert_eq!(run.mounts, ["type=cache,target=/x"]);
    assert_eq!(run.command, Command::Shell("make --jobs".into()));
    assert_eq!(*cmd, Command::Shell("--help".into()));
}

#[test]
fn mounts_are_told_apart() {
    let cache =
        Mount::parse("type=cache,id=npm,target=/root/.npm,sharing=locked,uid=1000,mode=0700").unwrap();
    let MountKind::Cache { id, sharing, access, .. } = cache.kind else { panic!() };
    assert_eq!((id.as_str(), sharing, access), ("npm", Sharing::Locked, (0o700, 1000, 0)));
    let secret = Mount::parse("type=secret,id=tok").unwrap();
    assert_eq!(secret.target, "/run/secrets/tok");
    let bind = Mount::parse("target=/src,from=base,source=/a,rw").unwrap();
    assert_eq!(bind.kind, MountKind::Bind { from: Some("base".into()), source: "/a".into(), writable: true });
    for (text, part) in [
        ("type=npipe,target=/x", "can't be of type `npipe`"),
        ("type=bind", "wants `target=`"),
        ("type=cache,target=/x,sharing=all", "shared, private or locked"),
        ("type=tmpfs,target=/x,source=/y", "no key `source`"),
        ("type=secret", "wants `id=`"),
        ("type=cache,target=/x,mode=9", "octal"),
        ("type=tmpfs,target=/x,target=/y", "twice"),
    ] {
        assert!(Mount::parse(text).unwrap_err().contains(part), "{text}");
    }
}

#[test]
fn durations_are_those_of_go() {
    for (text, expected) in [
        ("30s", Some(30_000_000_000)),
        ("1m30s", Some(90_000_000_000)),
        ("1.5h", Some(5_400_000_000_000)),
        ("100ms", Some(100_000_000)),
        ("0", Some(0)),
        ("5", None),
        ("", None),
        ("s", None),
        ("-1s", None),
    ] {
        assert_eq!(flags::nanoseconds(text), expected, "{text}");
    }
}
