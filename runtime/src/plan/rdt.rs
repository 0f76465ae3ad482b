//! `linux.intelRdt` (config-linux.md, IntelRdt): which class of service of the resctrl file system a container belongs to,
//! and what is written there. What is there already only [`crate::rdt`] can see, which does it.

use std::collections::BTreeMap;

use oci_spec::runtime::{Linux, LinuxIntelRdt};

use super::{Result, invalid};

const FIELD: &str = "linux.intelRdt";

/// Folders of resctrl that are no classes.
const RESERVED: [&str; 3] = ["info", "mon_groups", "mon_data"];

/// What a container asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RdtPlan {
    /// The folder of its class, below the root of resctrl; empty: the root itself, which is everybody's class.
    pub(crate) class: String,
    /// The class is the container's own, so it need not be looked at what it is like if it is there.
    pub(crate) own: bool,
    /// It has to be there: nothing is said that one could be made of.
    pub(crate) must_exist: bool,
    /// l3CacheSchema and memBwSchema, in lines. Of a class that is there and not the container's own they have to be
    /// true already.
    pub(crate) schema: Vec<String>,
    /// `schemata`: written last, whatever the class is like.
    pub(crate) schemata: Vec<String>,
    /// The name of a group of the container's own that counts what it uses.
    pub(crate) monitor: Option<String>,
    /// What has to be countable, and the field that wants it.
    pub(crate) counters: Vec<(&'static str, &'static [&'static str])>,
}

impl RdtPlan {
    /// A class of a container's own.
    pub(crate) fn own(id: &str, schema: Vec<String>) -> RdtPlan {
        RdtPlan { class: id.to_owned(), own: true, schema, ..RdtPlan::default() }
    }
}

/// Plans the class of a container; `None` if it says nothing about it.
#[allow(deprecated, reason = "enableCMT and enableMBM are what the specification had before 1.3")]
pub(crate) fn rdt(linux: &Linux, id: &str) -> Result<Option<RdtPlan>> {
    let Some(wanted) = linux.intel_rdt() else { return Ok(None) };
    let schema = schema(wanted)?;
    let schemata = schemata(wanted)?;
    let given = wanted.clos_id().as_deref().filter(|class| !class.is_empty());
    let class = match given {
        Some("/") => String::new(),
        Some(name) => class(name, &format!("{FIELD}.closID"))?,
        None => class(id, FIELD)?,
    };
    let mut counters: Vec<(&'static str, &'static [&'static str])> = Vec::new();
    if *wanted.enable_cmt() == Some(true) {
        counters.push(("linux.intelRdt.enableCMT", &["llc_occupancy"]));
    }
    if *wanted.enable_mbm() == Some(true) {
        counters.push(("linux.intelRdt.enableMBM", &["mbm_total_bytes", "mbm_local_bytes"]));
    }
    let monitored = *wanted.enable_monitoring() == Some(true) || !counters.is_empty();
    Ok(Some(RdtPlan {
        own: given.is_none(),
        must_exist: given.is_some() && schema.is_empty() && schemata.is_empty(),
        class,
        schema,
        schemata,
        monitor: monitored.then(|| id.to_owned()),
        counters,
    }))
}

/// Plans what `update` changes of a class, by its options.
pub(crate) fn rdt_update(l3_cache: Option<&str>, memory: Option<&str>) -> Result<Option<Vec<String>>> {
    let text = |option: Option<&str>| option.filter(|text| !text.is_empty()).map(str::to_owned);
    let mut wanted = LinuxIntelRdt::default();
    wanted.set_l3_cache_schema(text(l3_cache)).set_mem_bw_schema(text(memory));
    Ok(Some(schema(&wanted)?).filter(|lines| !lines.is_empty()))
}

/// A folder of its own right below the root: the kernel knows no other classes.
fn class(name: &str, field: &str) -> Result<String> {
    let plain = name != "." && name != ".." && !name.contains(['/', '\n', '\0']) && name.len() <= 255;
    if !plain || RESERVED.contains(&name) {
        let reason = format!(
            "{name:?} cannot be a class of service: use a plain name, or \"/\" for everybody's class"
        );
        return Err(invalid(field, &reason));
    }
    Ok(name.to_owned())
}

/// The lines of both schemas. Lines of memory in the one of the cache give way to the schema of memory.
fn schema(wanted: &LinuxIntelRdt) -> Result<Vec<String>> {
    let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let (cache, memory) = (given(wanted.l3_cache_schema()), given(wanted.mem_bw_schema()));
    if let Some(memory) = &memory
        && (!memory.starts_with("MB:") || memory.contains('\n'))
    {
        let reason = format!("{memory:?} is not one line that starts with \"MB:\", as in \"MB:0=20;1=70\"");
        return Err(invalid(&format!("{FIELD}.memBwSchema"), &reason));
    }
    let mut lines = Vec::new();
    for line in cache.iter().flat_map(|text| text.lines()).filter(|line| !line.trim().is_empty()) {
        if memory.is_none() || !line.starts_with("MB:") {
            lines.push(line_of(line, &format!("{FIELD}.l3CacheSchema"))?);
        }
    }
    lines.extend(memory.map(|line| line_of(&line, &format!("{FIELD}.memBwSchema"))).transpose()?);
    Ok(lines)
}

fn schemata(wanted: &LinuxIntelRdt) -> Result<Vec<String>> {
    let lines = wanted.schemata().iter().flatten().enumerate();
    lines.map(|(index, line)| line_of(line, &format!("{FIELD}.schemata[{index}]"))).collect()
}

/// One line as the kernel reads it (resctrl.rst, Schemata files). What resources there are only the machine knows.
fn line_of(line: &str, field: &str) -> Result<String> {
    match Line::parse(line) {
        Some(_) if !line.contains(['\n', '\0']) => Ok(line.to_owned()),
        _ => {
            let reason =
                format!("{line:?} is not one line of the form RESOURCE:ID=VALUE;…, as in \"L3:0=7f0;1=1f\"");
            Err(invalid(field, &reason))
        }
    }
}

/// One line of a schemata file.
#[derive(Debug, PartialEq, Eq)]
struct Line<'a> {
    resource: &'a str,
    /// What is given of it, by cache or socket; numbers as short as they can be written.
    values: BTreeMap<String, String>,
}

impl Line<'_> {
    fn parse(line: &str) -> Option<Line<'_>> {
        let (resource, values) = line.split_once(':')?;
        let short = |text: &str| {
            let text = text.trim().to_ascii_lowercase();
            let digits = text.trim_start_matches('0');
            if digits.is_empty() && !text.is_empty() { "0".to_owned() } else { digits.to_owned() }
        };
        let pairs = values.split(';').map(str::trim).filter(|pair| !pair.is_empty());
        let pairs = pairs.map(|pair| {
            let (id, value) = pair.split_once('=')?;
            let (id, value) = (short(id), short(value));
            (!id.is_empty() && !value.is_empty()).then_some((id, value))
        });
        let values: BTreeMap<String, String> = pairs.collect::<Option<_>>()?;
        let resource = resource.trim();
        (!resource.is_empty() && !values.is_empty()).then_some(Line { resource, values })
    }
}

/// The first of the lines that is not so in a class with this schemata file.
pub(crate) fn untrue<'a>(lines: &'a [String], schemata: &str) -> Option<&'a str> {
    let there: Vec<Line<'_>> = schemata.lines().filter_map(Line::parse).collect();
    let is_so = |line: &str| {
        let Some(wanted) = Line::parse(line) else { return false };
        let Some(found) = there.iter().find(|line| line.resource == wanted.resource) else { return false };
        wanted.values.iter().all(|(id, value)| found.values.get(id) == Some(value))
    };
    lines.iter().map(String::as_str).find(|line| !is_so(line))
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::Spec;
    use serde_json::{Value, json};

    use super::*;
    use crate::plan::amend;

    fn of(rdt: Value) -> Result<Option<RdtPlan>> {
        let spec = json!({ "ociVersion": "1.3.0", "linux": { "intelRdt": rdt } }).to_string();
        let mut read: Spec = serde_json::from_str(&spec).unwrap();
        amend::counters(spec.as_bytes(), &mut read).unwrap();
        super::rdt(read.linux().as_ref().unwrap(), "web")
    }

    fn plan(rdt: Value) -> RdtPlan {
        of(rdt).unwrap().unwrap()
    }

    #[test]
    fn a_class_is_found_by_its_name_or_made_for_the_container() {
        assert_eq!(rdt(&Linux::default(), "web"), Ok(None));
        let own = plan(json!({ "l3CacheSchema": "L3:0=7f0;1=1f", "memBwSchema": "MB:0=20;1=70" }));
        assert_eq!((own.class.as_str(), own.own, own.must_exist), ("web", true, false));
        assert_eq!(own.schema, ["L3:0=7f0;1=1f", "MB:0=20;1=70"]);
        assert_eq!((own.monitor, own.schemata), (None, Vec::<String>::new()));
        let there = plan(json!({ "closID": "gold" }));
        assert_eq!((there.class.as_str(), there.own, there.must_exist), ("gold", false, true));
        let shared = plan(json!({ "closID": "gold", "schemata": ["L2:0=f"], "enableMonitoring": true }));
        assert_eq!((shared.must_exist, shared.monitor.as_deref()), (false, Some("web")));
        assert_eq!(plan(json!({ "closID": "/" })).class, "");
        assert!(plan(json!({})).own, "a class with what the kernel gives to new ones");
    }

    #[test]
    fn lines_of_memory_give_way_to_the_schema_of_memory() {
        let both = json!({ "l3CacheSchema": "L3:0=f\nMB:0=10\n", "memBwSchema": "MB:0=20" });
        assert_eq!(plan(both).schema, ["L3:0=f", "MB:0=20"]);
        let cache = json!({ "l3CacheSchema": "L3DATA:0=f\nL3CODE:0=f0\nMB:0=10" });
        assert_eq!(plan(cache).schema, ["L3DATA:0=f", "L3CODE:0=f0", "MB:0=10"]);
    }

    #[test]
    fn what_was_asked_for_before_1_3_is_a_group_that_counts() {
        let old = plan(json!({ "enableCMT": true, "enableMBM": false }));
        assert_eq!(old.monitor.as_deref(), Some("web"));
        assert_eq!(old.counters, [("linux.intelRdt.enableCMT", &["llc_occupancy"][..])]);
        assert_eq!(plan(json!({ "enableCMT": false })).monitor, None);
    }

    #[test]
    fn what_is_wrong_is_named_by_its_field() {
        for (rdt, field) in [
            (json!({ "closID": "a/b" }), "linux.intelRdt.closID"),
            (json!({ "closID": ".." }), "linux.intelRdt.closID"),
            (json!({ "closID": "info" }), "linux.intelRdt.closID"),
            (json!({ "closID": "a\nb" }), "linux.intelRdt.closID"),
            (json!({ "memBwSchema": "L3:0=f" }), "linux.intelRdt.memBwSchema"),
            (json!({ "memBwSchema": "MB:0=10\nL3:0=f" }), "linux.intelRdt.memBwSchema"),
            (json!({ "l3CacheSchema": "L3" }), "linux.intelRdt.l3CacheSchema"),
            (json!({ "schemata": ["L3:0=f", "L3:0=f\nMB:0=1"] }), "linux.intelRdt.schemata[1]"),
            (json!({ "schemata": [""] }), "linux.intelRdt.schemata[0]"),
        ] {
            assert_eq!(of(rdt.clone()).unwrap_err().field, field, "{rdt}");
        }
        let linux: Linux = serde_json::from_value(json!({ "intelRdt": {} })).unwrap();
        assert_eq!(rdt(&linux, "mon_groups").unwrap_err().field, "linux.intelRdt");
        assert_eq!(rdt_update(None, Some("x")).unwrap_err().field, "linux.intelRdt.memBwSchema");
        assert_eq!(rdt_update(Some(""), None), Ok(None));
    }

    #[test]
    fn a_class_is_compared_by_what_its_lines_mean() {
        let there = "    L3:0=007ff;1=00fff\n    MB:0= 20;1=100\n";
        let lines = |text: &[&str]| text.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>();
        for same in [&["L3:0=7ff;1=fff"][..], &["L3:1=FFF", "MB:0=20"], &["MB:1=100;0=020"]] {
            assert_eq!(untrue(&lines(same), there), None, "{same:?}");
        }
        for other in ["L3:0=7fe", "L3:2=7ff", "L2:0=7ff", "MB:0=2"] {
            assert_eq!(untrue(&lines(&["L3:0=7ff", other]), there), Some(other));
        }
    }
}
