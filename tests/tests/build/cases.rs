//! Dockerfiles with everything that real ones have, built by us and by buildah, and compared file by file.

use std::fs;
use std::path::Path;
use std::process::Command;

use rorqual_tests::{command, images};

use super::compare::{assert_same, settings, tree};
use super::world::{BUILD, World};

/// A Dockerfile, and for buildah the same written out where Debian 12's does not know the feature.
struct Case {
    name: &'static str,
    ours: &'static str,
    theirs: Option<&'static str>,
    /// Paths below which times of files are kept.
    timed: &'static [&'static str],
    args: &'static [&'static str],
}

const fn case(name: &'static str, ours: &'static str) -> Case {
    Case { name, ours, theirs: None, timed: &[], args: &[] }
}

const CASES: &[Case] = &[
    case(
        "environment",
        "FROM busybox\nENV OLD a  b \"c\"\nENV A=1 B=\"x y\" C=z\\ w\nENV D=${A}-${NONE:-none}-${B:+set} E=\\$A\n\
         RUN echo \"$OLD|$A|$B|$C|$D|$E\" > /env\n",
    ),
    case(
        "continued lines",
        "from busybox\n# a comment\nENV DIR=/work\nWORKDIR $DIR/sub\nrun echo one \\\n# left out\n   two \\\n\n   three > out\n\
         WORKDIR ../other\nRUN pwd > where\n",
    ),
    Case {
        timed: &["app", "one", "many"],
        ..case(
            "copies",
            "FROM busybox\nCOPY src /app/src\nCOPY src/a.txt run.sh /app/\nCOPY src/a.txt /one/renamed.txt\n\
             COPY *.md src/?.txt /many/\nCOPY [\"with space\", \"/app/with space\"]\nCOPY empty /app/empty\nCOPY link /app/linked\n",
        )
    },
    case("left out", "FROM busybox\nWORKDIR /c\nCOPY . .\n"),
    case(
        "stages",
        "ARG TAG=latest\nFROM busybox:$TAG AS base\nRUN mkdir /out && echo base > /out/base && chown 5:6 /out/base\n\
         FROM base AS unused\nRUN false\nFROM base AS tool\nRUN echo tool > /out/tool && chmod 4755 /out/tool\n\
         FROM busybox\nCOPY --from=tool /out /result\nCOPY --from=base --chown=7:8 /out/base /owned/\nCOPY --from=0 /out/base /by-number\n",
    ),
    case(
        "settings",
        "FROM busybox\nARG PORT=8080\nLABEL a=b \"c d\"=\"e f\"\nEXPOSE $PORT 53/udp\nRUN mkdir /data /json\nVOLUME /data\nVOLUME [\"/json\"]\n\
         USER 1000:1000\nSTOPSIGNAL SIGQUIT\nENTRYPOINT [\"/bin/echo\"]\nCMD [\"hello\", \"there\"]\n",
    ),
    case(
        "shell",
        "FROM busybox\nSHELL [\"/bin/sh\", \"-exc\"]\nRUN echo shell > /shell\nCMD [\"sh\"]\n\
         HEALTHCHECK --interval=5s --timeout=3s --start-period=1m --retries=4 CMD [\"wget\", \"-q\", \"localhost\"]\n",
    ),
    case("an entrypoint clears an inherited command", "FROM busybox\nENTRYPOINT [\"new\"]\n"),
    case("an entrypoint keeps its stage's command", "FROM busybox\nCMD [\"own\"]\nENTRYPOINT [\"new\"]\n"),
    case(
        "deletions and links",
        "FROM busybox\nRUN mkdir -p /d/e && echo 1 > /d/e/f && ln /d/e/f /d/hard && ln -s e/f /d/soft && mkfifo /d/pipe\n\
         RUN rm /d/e/f && rm -rf /home && mkdir /home && echo x > /home/new\nRUN mv /d /moved && chmod 1770 /moved\n",
    ),
    case(
        "archives",
        "FROM busybox\nADD files.tar.gz /unpacked/\nADD files.tar /here\nADD run.sh /plain/\nADD src /tree/\n",
    ),
    case(
        "cache mounts",
        "FROM busybox\nRUN --mount=type=cache,target=/cached echo 1 > /cached/f && cp /cached/f /kept\n\
         RUN --mount=type=tmpfs,target=/scratch touch /scratch/gone && ls /scratch > /listed\n\
         RUN --mount=type=bind,source=src,target=/bound cat /bound/a.txt > /read\n",
    ),
    Case {
        theirs: Some(
            "FROM busybox\nRUN echo one > /one && echo \"two $PATH\" > /two\nCOPY heredoc/conf heredoc/raw /etc/app/\n\
             RUN printf 'script %s\\n' /bin/sh > /script\n",
        ),
        ..case(
            "here-documents",
            "FROM busybox\nRUN <<EOF\necho one > /one\necho \"two $PATH\" > /two\nEOF\nENV V=value\nCOPY <<conf <<\"raw\" /etc/app/\n\
             key = \"$V\" \\.x\nconf\nkey = $V\nraw\nENV V=\nRUN <<-EOF\n\t#!/bin/sh\n\tprintf 'script %s\\n' /bin/sh > /script\n\tEOF\n",
        )
    },
    Case {
        theirs: Some(
            "FROM busybox\nCOPY src/a.txt /deep/a.txt\nCOPY --chown=3:4 src/a.txt /owned.txt\nCOPY src/a.txt /kept/src/a.txt\nCOPY src/deep/b.c /only/deep/b.c\n",
        ),
        ..case(
            "newer flags",
            "FROM busybox\nCOPY --link src/a.txt /deep/\nCOPY --link --chown=3:4 src/a.txt /owned.txt\nCOPY --parents src/a.txt /kept/\n\
             COPY --exclude=*.txt src /only/\n",
        )
    },
    Case {
        args: &["--build-arg", "GIVEN=yes"],
        ..case(
            "arguments",
            "ARG OUTER=outer\nFROM busybox\nARG OUTER\nARG GIVEN=no\nARG DEFAULT=default\nARG TARGETARCH\nENV DEFAULT=env\n\
             RUN echo \"$OUTER $GIVEN $DEFAULT $TARGETARCH\" > /args\n",
        )
    },
    case(
        "modes",
        "FROM busybox\nCOPY --chmod=640 src/a.txt /m/\nCOPY --chmod=755 --chown=9 src /n\nRUN chmod 700 /n && chown -R 11:12 /n\n",
    ),
];

fn make_context(world: &World) -> std::path::PathBuf {
    let context = world.context(
        "context",
        &[
            ("src/a.txt", "a\n"),
            ("src/b.txt", "b\n"),
            ("src/deep/b.c", "int b;\n"),
            ("run.sh*", "#!/bin/sh\n"),
            ("one.md", "1"),
            ("two.md", "2"),
            ("with space", "x"),
            ("empty/", ""),
            ("node_modules/x/y", "no"),
            ("keep/me.log", "yes"),
            ("keep/not.log", "no"),
            (".dockerignore", "node_modules\n**/*.log\n!keep/me.log\nDockerfile*\nheredoc\n!heredoc/*\n"),
            ("heredoc/conf", "key = \"value\" \\.x\n"),
            ("heredoc/raw", "key = $V\n"),
        ],
    );
    std::os::unix::fs::symlink("src/a.txt", context.join("link")).unwrap();
    // An old time: it has to stay.
    let times = fs::FileTimes::new()
        .set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000));
    fs::File::open(context.join("src/a.txt")).unwrap().set_times(times).unwrap();
    for (flag, name) in [("-czf", "files.tar.gz"), ("-cf", "files.tar")] {
        let mut tar = Command::new("tar");
        tar.arg(flag)
            .arg(context.join(name))
            .args(["--owner=21:21", "--group=22:22", "-C"])
            .arg(&context)
            .arg("src");
        command::run(&mut tar, BUILD).ok();
    }
    context
}

fn import_busybox(world: &World) {
    let archive = images::archive("busybox");
    let pulled = world.buildah(&["pull", &format!("oci-archive:{}", archive.display())]).ok();
    let id = pulled.lines().last().unwrap().trim().to_owned();
    world.buildah(&["tag", &id, "docker.io/library/busybox:latest"]).ok();
}

fn buildah_build(world: &World, file: &Path, context: &Path, args: &[&str], tag: &str) {
    let words =
        ["bud", "--pull-never", "--format", "docker", "--layers", "-t", tag, "-f", file.to_str().unwrap()];
    let words: Vec<&str> = words.iter().chain(args).copied().chain([context.to_str().unwrap()]).collect();
    world.buildah(&words).ok();
}

fn compare(world: &World, case: &Case, context: &Path) {
    let file = world.folder.path().join(format!("Dockerfile.{}", case.name.replace(' ', "-")));
    fs::write(&file, case.ours).unwrap();
    let args: Vec<&str> = ["-f", file.to_str().unwrap()].iter().chain(case.args).copied().collect();
    let ours = tree(&world.files(&args, context), case.timed);
    let (config, _) = world.documents(&args, context);
    fs::write(&file, case.theirs.unwrap_or(case.ours)).unwrap();
    buildah_build(world, &file, context, case.args, "compared");
    let container = world.buildah(&["from", "--pull-never", "compared"]).ok();
    let mounted = world.buildah(&["mount", container.trim()]).ok();
    let theirs = tree(Path::new(mounted.trim()), case.timed);
    assert_same(case.name, &ours, &theirs);
    let inspected = world.buildah(&["inspect", "--type", "image", "compared"]).ok();
    let inspected: serde_json::Value = serde_json::from_str(&inspected).unwrap();
    if case.theirs.is_none() {
        assert_eq!(settings(&config["config"]), settings(&inspected["Docker"]["config"]), "{}", case.name);
    }
    world.buildah(&["rm", container.trim()]).ok();
}

#[test]
fn what_comes_out_is_what_buildah_makes() {
    let world = World::new("bldc");
    let context = make_context(&world);
    import_busybox(&world);
    for case in CASES {
        compare(&world, case, &context);
    }
    triggers(&world, &context);
    world.finish();
}

/// ONBUILD: what the child does is said by its parent, once.
fn triggers(world: &World, context: &Path) {
    let parent = world.folder.path().join("Dockerfile.parent");
    fs::write(
        &parent,
        "FROM busybox\nONBUILD COPY src/a.txt /from-child/\nONBUILD RUN echo triggered > /triggered\n",
    )
    .unwrap();
    let file = ["-f", parent.to_str().unwrap()];
    world.build(&[&file[..], &["-t", "parent:1"]].concat(), context).ok();
    buildah_build(world, &parent, context, &[], "localhost/parent:1");
    let (config, _) = world.documents(&file, context);
    let on_build = config["config"]["OnBuild"].as_array().unwrap();
    assert_eq!(on_build.len(), 2);
    world.buildah(&["tag", "localhost/parent:1", "docker.io/library/parent:1"]).ok();
    compare(world, &case("child", "FROM parent:1\nRUN cat /triggered > /seen\n"), context);
}
