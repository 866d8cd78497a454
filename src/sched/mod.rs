//! Which vCPU a physical CPU runs next. Pure: a policy sees the time and who is ready, nothing else.

pub mod round_robin;

use crate::arch::Ticks;

/// What a policy decided.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Decision {
    /// Which of the CPU's vCPUs runs, by its place in the CPU's list.
    pub run: usize,
    /// When its turn ends.
    pub ends: Ticks,
    /// When to decide again, if nothing else happens first.
    pub until: Option<Ticks>,
}

/// The most vCPUs that may share one physical CPU: a `ready` mask holds them.
pub const MAX_SHARED: usize = 64;
