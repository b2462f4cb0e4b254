//! What a host tier is opened with.

use hps_core::tier::EvictionPolicy;
use hps_core::{Error, ErrorKind, Result};

/// How every table of a host tier is laid out and bounded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HostSettings {
    /// Parts of each table, each with its own lock; at least 1.
    pub num_partitions: usize,
    /// Rows that a partition may hold, at least 1; None: no limit.
    pub overflow_margin: Option<u64>,
    /// Which rows go when a partition is full.
    pub overflow_policy: EvictionPolicy,
    /// Fraction of `overflow_margin` that an eviction leaves, above 0 and at most 1.
    pub overflow_resolution_target: f64,
    /// Devices read rows by themselves ([`hps_core::device::ReachableRows`]) where the allocator's memory allows it. Tables
    /// with a margin stay out of their reach: evictions would have to wait for devices.
    pub serves_devices: bool,
}

/// The bound of one partition, resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limit {
    /// Rows that a partition may hold; at least 1.
    pub(crate) margin: usize,
    /// Rows that an eviction leaves; less than `margin`.
    pub(crate) kept: usize,
    pub(crate) policy: EvictionPolicy,
}

impl HostSettings {
    /// Checks the settings and resolves the bound of each partition.
    pub(crate) fn limit(&self) -> Result<Option<Limit>> {
        let refuse = |message: String| Err(Error::new(ErrorKind::InvalidArgument, message));
        if self.num_partitions == 0 {
            return refuse("num_partitions must be at least 1".into());
        }
        let target = self.overflow_resolution_target;
        if !(target > 0.0 && target <= 1.0) {
            return refuse(format!("overflow_resolution_target must be above 0 and at most 1, not {target}"));
        }
        let Some(margin) = self.overflow_margin else { return Ok(None) };
        // Slots are numbered with 32 bits: no partition ever reaches a larger margin.
        let margin = match u32::try_from(margin) {
            Ok(0) => return refuse("overflow_margin must be at least 1".into()),
            Ok(margin) => margin as usize,
            Err(_) => return Ok(None),
        };
        // At least one row stays where more than one fits, and at least one goes, or there would be no room made.
        let resolved = (margin as f64 * target + 0.5) as usize;
        let kept = resolved.max(1).min(margin - 1);
        Ok(Some(Limit { margin, kept, policy: self.overflow_policy }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(margin: u64, target: f64) -> HostSettings {
        HostSettings {
            num_partitions: 1,
            overflow_margin: Some(margin),
            overflow_policy: EvictionPolicy::Random,
            overflow_resolution_target: target,
            serves_devices: false,
        }
    }

    #[test]
    fn the_target_is_rounded_and_always_makes_room() {
        let kept = |margin, target| settings(margin, target).limit().unwrap().unwrap().kept;
        assert_eq!(kept(10, 0.8), 8);
        assert_eq!(kept(10, 0.85), 9); // 8.5 rounds up
        assert_eq!(kept(10, 0.84), 8);
        assert_eq!(kept(10, 1.0), 9);
        assert_eq!(kept(10, 1e-9), 1);
        assert_eq!(kept(2, 0.1), 1);
        assert_eq!(kept(1, 0.8), 0);
        assert_eq!(settings(u64::MAX, 0.8).limit().unwrap(), None);
    }

    #[test]
    fn what_cannot_work_is_refused() {
        for wrong in [settings(0, 0.8), settings(10, 0.0), settings(10, 1.1), settings(10, f64::NAN)] {
            assert_eq!(wrong.limit().unwrap_err().kind(), ErrorKind::InvalidArgument);
        }
        let wrong = HostSettings { num_partitions: 0, ..settings(10, 0.8) };
        assert_eq!(wrong.limit().unwrap_err().kind(), ErrorKind::InvalidArgument);
        let unlimited = HostSettings { overflow_margin: None, ..settings(10, 0.8) };
        assert_eq!(unlimited.limit().unwrap(), None);
    }
}
