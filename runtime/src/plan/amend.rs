//! Specifications that are fine and that the types of `oci-spec` cannot hold: capabilities that they do not know (the
//! specification says that a runtime logs a warning and goes on), and flags whose names they spell in another way.
//! Only looked at once a specification could not be read as it is, so that others do not pay for it.

use oci_spec::runtime::Spec;
use serde_json::Value;

use super::capabilities;

/// What is left of a specification, or of a process, without what cannot be had; with warnings about that. `None`:
/// nothing of it has to be amended.
pub(crate) fn amend(text: &[u8]) -> Option<(Vec<u8>, Vec<String>)> {
    let mut value: Value = serde_json::from_slice(text).ok()?;
    let before = value.clone();
    let process = match value.get_mut("process") {
        Some(process) => process,
        None => &mut value,
    };
    let unknown = take_unknown(process.get_mut("capabilities"));
    if let Some(Value::Array(flags)) = process.pointer_mut("/scheduler/flags") {
        for flag in flags {
            match flag.as_str() {
                Some("SCHED_FLAG_DL_OVERRUN") => *flag = Value::from("SCHED_FLAG_D_L_OVERRUN"),
                Some("SCHED_FLAG_RESET_ON_FORK") => *flag = Value::from("SCHED_RESET_ON_FORK"),
                _ => {}
            }
        }
    }
    if value == before {
        return None;
    }
    let warnings = if unknown.is_empty() {
        Vec::new()
    } else {
        vec![format!("ignoring unknown or unavailable capabilities: [{}]", unknown.join(" "))]
    };
    Some((serde_json::to_vec(&value).ok()?, warnings))
}

/// What intelRdt had before 1.3, under the names of the specification: the types look for `enableCmt` and `enableMbm`.
#[allow(deprecated, reason = "as above")]
pub(crate) fn counters(text: &[u8], spec: &mut Spec) -> Result<(), (&'static str, String)> {
    let Some(rdt) = spec.linux_mut().as_mut().and_then(|linux| linux.intel_rdt_mut().as_mut()) else {
        return Ok(());
    };
    let value: Value = serde_json::from_slice(text).unwrap_or_default();
    let flag = |name: &str, field| match value.pointer(&format!("/linux/intelRdt/{name}")) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(on)) => Ok(Some(*on)),
        Some(other) => Err((field, format!("{other} is neither true nor false"))),
    };
    rdt.set_enable_cmt(flag("enableCMT", "linux.intelRdt.enableCMT")?);
    rdt.set_enable_mbm(flag("enableMBM", "linux.intelRdt.enableMBM")?);
    Ok(())
}

fn take_unknown(sets: Option<&mut Value>) -> Vec<String> {
    let mut unknown: Vec<String> = Vec::new();
    let Some(Value::Object(sets)) = sets else { return unknown };
    for set in sets.values_mut() {
        let Value::Array(names) = set else { continue };
        names.retain(|name| match name.as_str() {
            Some(name) if capabilities::number(name).is_none() => {
                unknown.push(name.to_owned());
                false
            }
            _ => true,
        });
    }
    unknown.sort();
    unknown.dedup();
    unknown
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::Process;

    fn read<T: serde::de::DeserializeOwned>(text: &[u8]) -> Option<(T, Vec<String>)> {
        let (text, warnings) = amend(text)?;
        Some((serde_json::from_slice(&text).ok()?, warnings))
    }

    const CAPABILITIES: &str =
        r#""capabilities":{"bounding":["CAP_KILL","CAP_FLY"],"effective":["CAP_FLY"]}"#;

    #[test]
    fn unknown_capabilities_are_left_out_and_told() {
        let process = format!(r#"{{"cwd":"/","user":{{}},{CAPABILITIES}}}"#);
        let (read_back, warnings) = read::<Process>(process.as_bytes()).unwrap();
        assert_eq!(warnings, ["ignoring unknown or unavailable capabilities: [CAP_FLY]"]);
        let sets = read_back.capabilities().as_ref().unwrap();
        assert_eq!(sets.bounding().as_ref().unwrap().len(), 1);
        let spec = format!(r#"{{"ociVersion":"1.0.2","process":{process}}}"#);
        assert!(read::<Spec>(spec.as_bytes()).is_some());
    }

    #[test]
    fn the_schedulers_flags_have_the_kernels_names() {
        let names = r#"["SCHED_FLAG_DL_OVERRUN","SCHED_FLAG_RECLAIM","SCHED_FLAG_RESET_ON_FORK"]"#;
        let flags = format!(r#"{{"policy":"SCHED_DEADLINE","flags":{names}}}"#);
        let process = format!(r#"{{"cwd":"/","user":{{}},"scheduler":{flags}}}"#);
        assert!(serde_json::from_str::<Process>(&process).is_err(), "read as it is, once oci-spec knows it");
        let (process, warnings) = read::<Process>(process.as_bytes()).unwrap();
        assert_eq!(process.scheduler().as_ref().unwrap().flags().as_ref().unwrap().len(), 3);
        assert!(warnings.is_empty());
    }

    #[test]
    #[allow(deprecated, reason = "as above")]
    fn counters_have_the_names_of_the_specification() {
        let read = |rdt: &str| {
            let text = format!(r#"{{"ociVersion":"1.2.0","linux":{{"intelRdt":{rdt}}}}}"#);
            let mut spec: Spec = serde_json::from_str(&text).unwrap();
            counters(text.as_bytes(), &mut spec)?;
            let rdt = spec.linux().clone().unwrap().intel_rdt().clone().unwrap();
            Ok::<_, (&str, String)>((*rdt.enable_cmt(), *rdt.enable_mbm()))
        };
        assert_eq!(read(r#"{"enableCMT":true,"enableMBM":false}"#), Ok((Some(true), Some(false))));
        assert_eq!(read("{}"), Ok((None, None)));
        assert_eq!(read(r#"{"enableMBM":1}"#).unwrap_err().0, "linux.intelRdt.enableMBM");
    }

    #[test]
    fn other_mistakes_stay_mistakes() {
        assert!(read::<Process>(br#"{"cwd":7}"#).is_none());
        assert!(read::<Process>(b"{").is_none());
        let process =
            format!(r#"{{"cwd":"/","user":{{}},{CAPABILITIES},"rlimits":[{{"type":"RLIMIT_X"}}]}}"#);
        assert!(read::<Process>(process.as_bytes()).is_none());
    }
}
