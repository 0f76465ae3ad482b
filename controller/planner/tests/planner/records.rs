//! Records: versions, order, and what they take.

use rorqual_planner::{Action, ActionKind, Change, Conflict, State};
use rorqual_proto::model::Record;

fn put(key: &str, value: &str) -> ActionKind {
    ActionKind::PutRecord(Box::new(Record { key: key.to_owned(), version: 99, value: value.into() }))
}

fn write(state: &mut State, index: u64, actions: &[Action]) -> Result<(), Conflict> {
    state.check_all(actions)?;
    for action in actions {
        assert_eq!(state.apply(action, index, 0), Change::Nothing, "nothing is planned by records");
    }
    Ok(())
}

#[test]
fn a_batch_stands_or_falls_with_the_versions_that_it_expects() {
    let mut state = State::default();
    write(&mut state, 5, &[Action::expecting(put("a/1", "one"), 0)]).unwrap();
    assert_eq!(state.record("a/1").unwrap().version, 5, "the place in the log, whatever was given");
    let again = write(&mut state, 6, &[Action::expecting(put("a/1", "two"), 0)]).unwrap_err();
    assert_eq!(again, Conflict::Version { object: "record a/1".to_owned(), expected: 0, actual: 5 });
    let guarded = |version| {
        [
            Action::new(put("a/2", "two")),
            Action::expecting(ActionKind::ExpectRecord("a/1".to_owned()), version),
        ]
    };
    assert!(write(&mut state, 7, &guarded(4)).is_err());
    assert_eq!(state.record("a/2"), None, "all or nothing");
    write(&mut state, 8, &guarded(5)).unwrap();
    assert_eq!(state.record("a/1").unwrap().version, 5, "expecting is not writing");
    let remove = |key: &str| ActionKind::RemoveRecord(key.to_owned());
    assert!(write(&mut state, 9, &[Action::expecting(remove("a/1"), 8)]).is_err());
    write(&mut state, 10, &[Action::expecting(remove("a/1"), 5), Action::new(remove("none"))]).unwrap();
    assert_eq!(state.record("a/1"), None);
}

#[test]
fn records_are_listed_in_order_behind_a_key() {
    let mut state = State::default();
    let keys = ["b/1", "a/2", "a/1", "a/10", "a", "a0"];
    let actions: Vec<Action> = keys.iter().map(|key| Action::new(put(key, "value"))).collect();
    write(&mut state, 1, &actions).unwrap();
    let listed = |state: &State, prefix: &str, after: &str| -> Vec<String> {
        state.records_behind(prefix, after).map(|record| record.key.clone()).collect()
    };
    assert_eq!(listed(&state, "a/", ""), ["a/1", "a/10", "a/2"]);
    assert_eq!(listed(&state, "a/", "1"), ["a/10", "a/2"]);
    assert_eq!(listed(&state, "a/", "11"), ["a/2"]);
    assert_eq!(listed(&state, "c", ""), [] as [&str; 0]);
    // What they take is counted, and a snapshot brings all of it back.
    let total = |state: &State| state.records().map(|record| record.size_bytes()).sum::<u64>();
    assert_eq!(state.records_bytes(), total(&state));
    write(&mut state, 2, &[Action::new(put("a/1", "a longer value"))]).unwrap();
    write(&mut state, 3, &[Action::new(ActionKind::RemoveRecord("b/1".to_owned()))]).unwrap();
    assert_eq!(state.records_bytes(), total(&state));
    let restored = State::restore(state.objects());
    assert_eq!(restored.records_bytes(), state.records_bytes());
    assert_eq!(listed(&restored, "", ""), listed(&state, "", ""));
    assert_eq!(restored.record("a/1").unwrap().version, 2);
}
