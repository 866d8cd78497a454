//! Interrupts: the machine's own GICv3, and the virtual interface that guests get theirs by.

pub mod host;
pub mod lists;
