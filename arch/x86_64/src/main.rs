//! The bootable program: the library's `hw::start` is entered, not this.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
use bulkhead_x86_64 as _;

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!(
        "this program boots a bare machine: build it with `cargo xtask pack`, or try it with `cargo xtask run`"
    );
    std::process::exit(2);
}
