//! Which stages a build needs, and what each of them needs.
//!
//! A stage needs the stage that it is built from, and those that COPY and RUN's mounts name. Only what the
//! target reaches is built. A stage may name only stages that stand before it, so a circle can't come about
//! except through itself, or through a name that stands further below: both are refused. Start at [`Graph::new`].

use std::collections::BTreeSet;

use super::dockerfile::{Dockerfile, Instruction, Kind, Mount, MountKind, SyntaxError, words};
use super::vars::{Given, Scope};
use crate::platform::Platform;

/// What a stage is built from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Base {
    /// Nothing.
    Scratch,
    /// An earlier stage.
    Stage(usize),
    /// An image, or a further context of that name.
    Image(String),
}

/// A stage that is built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) base: Base,
    /// What it is for.
    pub(crate) platform: Platform,
    /// Stages that have to be there before it, its base included.
    pub(crate) needs: BTreeSet<usize>,
}

/// The stages of a Dockerfile and how they hang together.
#[derive(Clone, Debug)]
pub(crate) struct Graph {
    pub(crate) nodes: Vec<Node>,
    /// The stage whose image is wanted.
    pub(crate) target: usize,
    /// The stages that the target reaches, itself included.
    pub(crate) reached: BTreeSet<usize>,
    /// ARGs before the first FROM.
    pub(crate) global: Scope,
}

/// The number of the stage with that name, or that number, among the first `before`.
pub(crate) fn find_stage(file: &Dockerfile, name: &str, before: usize) -> Option<usize> {
    let stages = &file.stages[..before.min(file.stages.len())];
    // The last one of a name counts.
    let named = stages
        .iter()
        .rposition(|stage| stage.from.name.as_ref().is_some_and(|known| known.eq_ignore_ascii_case(name)));
    named.or_else(|| name.parse().ok().filter(|number| *number < stages.len()))
}

impl Graph {
    /// Works out what `target` (a stage's name or number; else the last stage) needs. `contexts` are the
    /// names of further contexts, which go before stages and images.
    pub(crate) fn new(
        file: &Dockerfile,
        target: Option<&str>,
        given: &Given,
        contexts: &BTreeSet<String>,
        platform: &Platform,
    ) -> Result<Graph, GraphError> {
        let mut global = Scope::default();
        let escape = file.directives.escape;
        for instruction in &file.global_args {
            let Kind::Arg(args) = &instruction.kind else { continue };
            for (name, default) in args {
                let lookup = |name: &str| global.global_lookup(name, given);
                let default = default.as_ref().map(|text| words::expand(text, escape, &lookup)).transpose();
                let default = default.map_err(|reason| instruction.place.refuse(reason))?;
                global.declare_global(name, default, given);
            }
        }
        let target = match target {
            Some(name) => find_stage(file, name, file.stages.len())
                .ok_or_else(|| GraphError::Target { name: name.to_owned(), known: names(file) })?,
            None => file.stages.len() - 1,
        };
        let mut nodes = Vec::with_capacity(file.stages.len());
        for number in 0..file.stages.len() {
            let mut node = node(file, number, (&global, given), contexts, platform)?;
            if let (Base::Stage(below), None) = (&node.base, &file.stages[number].from.platform) {
                let below: &Node = &nodes[*below];
                node.platform = below.platform.clone();
            }
            nodes.push(node);
        }
        let mut reached = BTreeSet::new();
        let mut ahead = vec![target];
        while let Some(number) = ahead.pop() {
            if reached.insert(number) {
                ahead.extend(nodes[number].needs.iter().copied());
            }
        }
        for number in &reached {
            refuse_later(file, *number, contexts)?;
        }
        Ok(Graph { nodes, target, reached, global })
    }
}

/// Why there is no graph.
#[derive(Debug)]
pub(crate) enum GraphError {
    Syntax(SyntaxError),
    Target { name: String, known: Vec<String> },
}

impl From<SyntaxError> for GraphError {
    fn from(error: SyntaxError) -> Self {
        GraphError::Syntax(error)
    }
}

fn names(file: &Dockerfile) -> Vec<String> {
    file.stages.iter().filter_map(|stage| stage.from.name.clone()).collect()
}

fn node(
    file: &Dockerfile,
    number: usize,
    (global, given): (&Scope, &Given),
    contexts: &BTreeSet<String>,
    target: &Platform,
) -> Result<Node, SyntaxError> {
    let stage = &file.stages[number];
    let lookup = |name: &str| global.global_lookup(name, given);
    let expand = |text: &str| {
        words::expand(text, file.directives.escape, &lookup)
            .map_err(|reason| stage.instruction.place.refuse(reason))
    };
    let image = expand(&stage.from.image)?;
    if image.is_empty() {
        let reason = format!(
            "`{}` stands for nothing: give its variables a value with --build-arg, or a default",
            stage.from.image
        );
        return Err(stage.instruction.place.refuse(reason));
    }
    let platform = match stage.from.platform.as_deref().map(expand).transpose()?.as_deref() {
        None | Some("") => target.clone(),
        Some(text) => {
            Platform::parse(text, target).map_err(|reason| stage.instruction.place.refuse(reason))?
        }
    };
    let base = match find_stage_by_name(file, &image, number) {
        _ if contexts.contains(&image) => Base::Image(image),
        Some(number) => Base::Stage(number),
        None if image.eq_ignore_ascii_case("scratch") => Base::Scratch,
        None => Base::Image(image),
    };
    let mut needs: BTreeSet<usize> = match &base {
        Base::Stage(number) => BTreeSet::from([*number]),
        _ => BTreeSet::new(),
    };
    for name in stage.instructions.iter().flat_map(sources) {
        if !contexts.contains(&name) {
            needs.extend(find_stage(file, &name, number));
        }
    }
    Ok(Node { base, platform, needs })
}

/// FROM takes names only, so that `FROM 0` is an image.
fn find_stage_by_name(file: &Dockerfile, name: &str, before: usize) -> Option<usize> {
    find_stage(file, name, before).filter(|number| {
        file.stages[*number].from.name.as_ref().is_some_and(|known| known.eq_ignore_ascii_case(name))
    })
}

/// The names that an instruction takes files from. A mount that can't be read is refused when it is run.
fn sources(instruction: &Instruction) -> Vec<String> {
    match &instruction.kind {
        Kind::Copy(copy) => copy.from.iter().cloned().collect(),
        Kind::Run(run) => {
            let mounts = run.mounts.iter().filter_map(|text| Mount::parse(text).ok());
            let from = mounts.filter_map(|mount| match mount.kind {
                MountKind::Bind { from, .. } | MountKind::Cache { from, .. } => from,
                _ => None,
            });
            from.collect()
        }
        _ => Vec::new(),
    }
}

/// A stage can't take from itself, nor from one that stands below: that is how circles are written.
fn refuse_later(file: &Dockerfile, number: usize, contexts: &BTreeSet<String>) -> Result<(), SyntaxError> {
    let stage = &file.stages[number];
    let later = |name: &str| {
        let own = &file.stages[number..];
        own.iter()
            .position(|stage| stage.from.name.as_ref().is_some_and(|known| known.eq_ignore_ascii_case(name)))
    };
    let refuse = |instruction: &Instruction, name: &str, distance: usize| {
        let reason = if distance == 0 {
            format!("the stage `{name}` needs itself")
        } else {
            let line = file.stages[number + distance].instruction.place.first;
            format!(
                "the stage `{name}` stands further below (line {line}): stages may need only those above them, so that none needs itself in a circle"
            )
        };
        Err(instruction.place.refuse(reason))
    };
    let base = stage.from.image.as_str();
    if let Some(distance) =
        later(base).filter(|_| !contexts.contains(base) && find_stage(file, base, number).is_none())
        && distance > 0
    {
        return refuse(&stage.instruction, base, distance);
    }
    for instruction in &stage.instructions {
        for name in sources(instruction) {
            if contexts.contains(&name) || find_stage(file, &name, number).is_some() {
                continue;
            }
            if let Some(distance) = later(&name) {
                return refuse(instruction, &name, distance);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(text: &str, target: Option<&str>) -> Result<Graph, GraphError> {
        let file = Dockerfile::parse("Dockerfile", text).unwrap();
        let own = Platform::host();
        let given = Given::new([("V".to_owned(), "3".to_owned())].into(), &own, &own);
        Graph::new(&file, target, &given, &BTreeSet::from(["ctx".to_owned()]), &own)
    }

    const FOUR: &str = "ARG V=1\nFROM a:$V AS one\nFROM b AS two\nFROM one AS three\nCOPY --from=two x y\n\
                        RUN --mount=from=0,target=/x y\nFROM c AS four\nCOPY --from=ctx x y\nCOPY --from=img x y\n";

    #[test]
    fn only_what_the_target_reaches_is_built() {
        let all = graph(FOUR, None).unwrap();
        assert_eq!((all.target, all.reached), (3, BTreeSet::from([3])));
        let three = graph(FOUR, Some("three")).unwrap();
        assert_eq!(three.reached, BTreeSet::from([0, 1, 2]));
        assert_eq!(three.nodes[2].base, Base::Stage(0));
        assert_eq!(three.nodes[0].base, Base::Image("a:3".into()));
        assert_eq!(graph(FOUR, Some("1")).unwrap().target, 1);
        let Err(GraphError::Target { known, .. }) = graph(FOUR, Some("five")) else { panic!() };
        assert_eq!(known, ["one", "two", "three", "four"]);
    }

    #[test]
    fn circles_are_refused_with_the_line() {
        for (text, part) in [
            ("FROM a AS one\nCOPY --from=one x y\n", "Dockerfile:2: the stage `one` needs itself"),
            (
                "FROM a AS one\nCOPY --from=two x y\nFROM one AS two\n",
                "Dockerfile:2: the stage `two` stands further below (line 3)",
            ),
            ("FROM two AS one\nFROM one AS two\n", "Dockerfile:1: the stage `two` stands further below"),
            (
                "FROM a AS one\nRUN --mount=from=two,target=/x y\nFROM b AS two\nCOPY --from=one x y\n",
                "Dockerfile:2",
            ),
            ("FROM $NONE\n", "stands for nothing"),
        ] {
            let Err(GraphError::Syntax(error)) = graph(text, None) else { panic!("{text}") };
            assert!(error.to_string().contains(part), "{text}: {error}");
        }
        // `FROM nginx AS nginx` is the image.
        assert_eq!(graph("FROM n AS n\n", None).unwrap().nodes[0].base, Base::Image("n".into()));
    }
}
