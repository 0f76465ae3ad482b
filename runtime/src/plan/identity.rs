//! Mappings of users and groups between a user namespace and its parent, as the kernel wants them written
//! (user_namespaces(7)).

use oci_spec::runtime::LinuxIdMapping;

use super::{Result, invalid};

/// More lines the kernel does not take.
const LINES: usize = 340;

/// One range: (first id inside, first id outside, how many).
pub(crate) type Range = (u32, u32, u32);

/// Both mappings of a user namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct IdMaps {
    pub(crate) uids: Vec<Range>,
    pub(crate) gids: Vec<Range>,
}

impl IdMaps {
    /// `field`: what has the fields uidMappings and gidMappings.
    pub(crate) fn of(uids: &[LinuxIdMapping], gids: &[LinuxIdMapping], field: &str) -> Result<IdMaps> {
        Ok(IdMaps {
            uids: ranges(uids, &format!("{field}.uidMappings"))?,
            gids: ranges(gids, &format!("{field}.gidMappings"))?,
        })
    }

    /// Whether an id inside has one outside.
    pub(crate) fn maps(ranges: &[Range], id: u32) -> bool {
        ranges.iter().any(|(inside, _, size)| id.checked_sub(*inside).is_some_and(|offset| offset < *size))
    }

    /// The id outside that root, or its group, has.
    pub(crate) fn outside_root(&self, group: bool) -> u32 {
        let ranges = if group { &self.gids } else { &self.uids };
        ranges.iter().find(|(inside, ..)| *inside == 0).map_or(0, |(_, outside, _)| *outside)
    }

    /// The lines that are written to uid_map or gid_map.
    pub(crate) fn lines(ranges: &[Range]) -> String {
        let lines = ranges.iter().map(|(inside, outside, size)| format!("{inside} {outside} {size}\n"));
        lines.collect()
    }
}

fn ranges(mappings: &[LinuxIdMapping], field: &str) -> Result<Vec<Range>> {
    if mappings.len() > LINES {
        return Err(invalid(field, &format!("has more than the kernel's {LINES} ranges")));
    }
    let mut ranges: Vec<Range> = Vec::with_capacity(mappings.len());
    for (index, mapping) in mappings.iter().enumerate() {
        let (inside, outside, size) = (mapping.container_id(), mapping.host_id(), mapping.size());
        let field = format!("{field}[{index}]");
        if size == 0 {
            return Err(invalid(&format!("{field}.size"), "is 0: a range has at least one id"));
        }
        // The last number means nobody.
        let fits = |first: u32| first.checked_add(size).is_some();
        if !fits(inside) || !fits(outside) {
            return Err(invalid(&field, "ids end at 4294967294"));
        }
        let overlap = |a: u32, b: u32, b_size: u32| a < b + b_size && b < a + size;
        if ranges.iter().any(|other| overlap(inside, other.0, other.2) || overlap(outside, other.1, other.2))
        {
            return Err(invalid(&field, "overlaps with a range before it"));
        }
        ranges.push((inside, outside, size));
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::LinuxIdMappingBuilder;

    fn mapping((inside, outside, size): Range) -> LinuxIdMapping {
        LinuxIdMappingBuilder::default().container_id(inside).host_id(outside).size(size).build().unwrap()
    }

    fn of(list: &[Range]) -> Result<Vec<Range>> {
        ranges(&list.iter().map(|range| mapping(*range)).collect::<Vec<_>>(), "linux.uidMappings")
    }

    #[test]
    fn ranges_are_written_as_the_kernel_reads_them() {
        let ranges = of(&[(0, 1000, 1), (1, 100_000, 65_535)]).unwrap();
        assert_eq!(IdMaps::lines(&ranges), "0 1000 1\n1 100000 65535\n");
        assert!(IdMaps::maps(&ranges, 0) && IdMaps::maps(&ranges, 65_535) && !IdMaps::maps(&ranges, 65_536));
        assert!(of(&[(0, 0, u32::MAX)]).is_ok(), "all there are");
    }

    #[test]
    fn what_the_kernel_would_refuse_is_named() {
        let field = |list: &[Range]| of(list).unwrap_err().field;
        assert_eq!(field(&[(0, 0, 0)]), "linux.uidMappings[0].size");
        assert_eq!(field(&[(0, 0, 1), (1, u32::MAX, 2)]), "linux.uidMappings[1]");
        assert_eq!(field(&[(0, 100, 10), (5, 200, 10)]), "linux.uidMappings[1]");
        assert_eq!(field(&[(0, 100, 10), (10, 105, 10)]), "linux.uidMappings[1]");
        assert_eq!(field(&vec![(0, 0, 1); 341]), "linux.uidMappings");
    }
}
