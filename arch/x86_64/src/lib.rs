//! Bulkhead on PCs: the core's back end for x86_64 with Intel VMX or AMD SVM, and the program that boots it.
//!
//! * [`hw`]: every privileged instruction, device registers, and the loader's word; all `unsafe` but one promise.
//! * [`x86`], [`vcpu`], [`exits`], [`apic`], [`inject`], [`report`]: the back end that both vendors share; makes the seam's
//!   promise.
//! * [`vendor`]: what a vendor has to offer to it; [`svm`] with [`npt`], [`vmx`] with [`ept`] do.
//! * [`insn`], [`paging`], [`mmio`], [`cpuid`], [`msr`], [`control`], [`machine`], [`board`]: pure, tested on the host.
#![cfg_attr(target_os = "none", no_std)]

extern crate alloc;

pub mod apic;
pub mod board;
pub mod control;
pub mod cpuid;
pub mod ept;
pub mod exits;
pub mod hw;
pub mod inject;
pub mod insn;
pub mod machine;
pub mod mmio;
pub mod msr;
pub mod npt;
pub mod paging;
#[cfg(target_os = "none")]
mod program;
pub mod report;
pub mod speculation;
pub mod svm;
pub mod vcpu;
pub mod vendor;
pub mod vmx;
pub mod x86;
