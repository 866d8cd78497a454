//! Lays the test guests out as multiboot programs: linked to 1 MiB, header first, no relocations left.

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=guest.ld");
    println!("cargo::rerun-if-changed=build.rs");
    if env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("none") {
        return;
    }
    let folder = env::var("CARGO_MANIFEST_DIR").expect("cargo names the package's folder");
    println!("cargo::rustc-link-arg-bins=-T{folder}/guest.ld");
    for argument in ["-no-pie", "-znorelro", "-zmax-page-size=4096", "--build-id=none"] {
        println!("cargo::rustc-link-arg-bins={argument}");
    }
}
