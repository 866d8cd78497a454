//! Bulkhead on Arm: the core's back end for ARMv8-A with EL2, and the program that boots it.
//!
//! * [`hw`]: every privileged instruction, device registers, and the loader's word; all `unsafe` but one promise.
//! * [`el2`]: the back end: runs a guest, serves what is its own, hands the rest to the core; makes the seam's promise.
//! * [`gic`]: the machine's interrupt controller and the virtual interface.
//! * [`esr`], [`psci`], [`idregs`], [`debug`], [`inject`], [`vmsa`], [`machine`], [`board`]: pure, tested on the host.
#![cfg_attr(target_os = "none", no_std)]

extern crate alloc;

pub mod board;
pub mod debug;
pub mod el2;
pub mod esr;
pub mod gic;
pub mod hw;
pub mod idregs;
pub mod inject;
pub mod machine;
#[cfg(target_os = "none")]
mod program;
pub mod psci;
pub mod vmsa;
