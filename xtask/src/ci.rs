//! `cargo xtask ci`: what every change must pass, here as on any other machine.

use anyhow::bail;

use crate::build::{ARCHITECTURES, guests_package, hypervisor_package, target};
use crate::progress::Step;
use crate::test::{self, Tally};
use crate::{command, lint, setup, size, workspace};

/// Runs it all; a failure does not keep the rest from being looked at.
pub(crate) fn run() -> anyhow::Result<()> {
    setup::checks()?;
    setup::emulators()?;
    let tally = Tally::default();
    tally.check("format", || command::read(workspace::cargo("fmt").args(["--all", "--check"])).map(drop));
    tally.check("lints on the host", || clippy(&["--all-targets"]));
    for architecture in ARCHITECTURES {
        for package in [hypervisor_package(architecture), guests_package(architecture)] {
            tally.check(&format!("lints of {package} on bare metal"), || {
                clippy(&["--release", "--target", target(architecture), "-p", package])
            });
        }
    }
    tally.check("house rules", house_rules);
    if command::exists("cargo-deny") {
        tally.check("licences and sources of dependencies", || {
            // Its advisory database needs the network; the rest does not.
            command::read(workspace::cargo("deny").args(["check", "licenses", "bans", "sources"])).map(drop)
        });
    }
    test::all(&tally, false);
    tally.check("size", size::run);
    tally.close()
}

fn clippy(what: &[&str]) -> anyhow::Result<()> {
    let _step = Step::start("linting");
    command::read(workspace::cargo("clippy").args(what).args(["--", "-D", "warnings"])).map(drop)
}

fn house_rules() -> anyhow::Result<()> {
    let findings = lint::run()?;
    if findings.is_empty() {
        return Ok(());
    }
    bail!("{}", findings.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
}
