//! What a guest's firmware would have left behind: where the kernel and its files lie in the guest's memory, and the tables
//! that describe the machine to it.
//!
//! Bytes and addresses in, bytes and addresses out: nothing here touches a guest's memory. It relies on `vdev` for the
//! machine's layout. It allocates, so it runs before the guest does, never while one is being served.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod acpi;
pub mod arm64_image;
mod boot_data;
pub mod bzimage;
pub mod e820;
pub mod elf_image;
pub mod fdt;
mod identity;
pub mod multiboot1;
pub mod pc_boot;
pub mod pc_placement;
pub mod placement;
pub mod pvh;
pub mod seeds;
#[cfg(test)]
mod testing;
