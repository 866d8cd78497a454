//! The core of Bulkhead: everything that is the same on every CPU.
//!
//! The map, from the outside in:
//! * [`boot`]: what a loader hands over; [`Hypervisor::new`] makes compartments of it.
//! * [`config`]: the system as its integrator described it; pure, shared with xtask.
//! * [`memory`]: who owns which host memory, second-stage tables, guest RAM.
//! * [`vm`], [`vcpu`]: a compartment, its life, and the loop that each physical CPU runs.
//! * [`sched`]: which vCPU runs next; pure. [`turn`]: who may interrupt whom.
//! * [`console`]: every VM's console on one physical UART.
//! * [`arch`]: the seam that a CPU back end implements. The back ends are programs that link this library, so
//!   nothing in here can name a CPU.
#![no_std]

extern crate alloc;

pub mod arch;
pub mod boot;
pub mod config;
pub mod console;
pub mod hypercall;
pub mod memory;
pub mod sched;
pub mod turn;
pub mod vcpu;
pub mod vm;

pub use boot::{Boot, Hypervisor, main};
