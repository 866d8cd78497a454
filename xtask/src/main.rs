//! Bulkhead's tool, for integrators and developers alike: `cargo xtask help` lists what it does.
//!
//! It relies on Cargo, on Debian's apt-get for what a machine lacks, and on QEMU to boot. Whatever it builds or fetches lies in
//! Cargo's target folder; it changes nothing else, but for the packages that `setup` installs.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::anyhow;
use clap::{Args, Parser, Subcommand};

use machine::{Clock, CpuModel, Machine, Settings};

mod apt;
mod bench;
mod boot;
mod build;
mod ci;
mod command;
mod compare;
mod console;
mod damage;
mod flatten;
mod frames;
mod initramfs;
mod lint;
mod machine;
mod pack;
mod payload;
mod problem;
mod progress;
mod quantity;
mod run;
mod scenario;
mod schema;
mod setup;
mod size;
mod source;
mod system;
mod test;
mod workspace;

/// Builds, checks, boots and measures Bulkhead.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", arg_required_else_help = true)]
struct Line {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what this machine lacks
    Setup,
    /// Boot a system with its consoles on this terminal (Ctrl-A x ends it)
    Run {
        /// A name under images/, or a folder with a system.toml
        #[arg(default_value = "linux-aarch64")]
        image: String,
        #[command(flatten)]
        machine: MachineOptions,
    },
    /// Boot by script; succeeds only if every step held
    Scenario {
        /// Scenario files
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// Keep what every console printed in this folder
        #[arg(long, value_name = "DIR")]
        log: Option<PathBuf>,
    },
    /// Check a system without booting it
    Check {
        /// A name under images/, or a folder with a system.toml
        #[arg(required_unless_present = "schema")]
        image: Option<String>,
        /// Print the JSON schema of system.toml for editors
        #[arg(long)]
        schema: bool,
    },
    /// Write the bootable files for a real machine
    Pack {
        /// A name under images/, or a folder with a system.toml
        image: String,
        /// Where to write them
        #[arg(short, long, value_name = "DIR")]
        output: PathBuf,
    },
    /// Run all tests: host, test guests, scenarios
    Test {
        /// Only the tests that need no emulator
        #[arg(long)]
        fast: bool,
    },
    /// Count the instructions of each operation and compare with other hypervisors
    Bench {
        /// The machine
        #[arg(long, default_value = "qemu-virt", value_name = "M")]
        machine: Machine,
        /// Only this processor: cortex-a57 or max
        #[arg(long)]
        cpu: Option<CpuModel>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Everything that a change must pass: format, lints, tests
    Ci,
    /// Count code lines, unsafe blocks and bytes
    Size,
}

#[derive(Args)]
struct MachineOptions {
    /// The machine: qemu-virt or qemu-virt-smmu
    #[arg(long, default_value = "qemu-virt", value_name = "M")]
    machine: Machine,
    /// The processor: cortex-a57 (without VHE) or max (with everything)
    #[arg(long, default_value = CpuModel::CortexA57.name())]
    cpu: CpuModel,
    /// How many processors
    #[arg(long, default_value_t = scenario::DEFAULT_CPUS, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    cpus: u32,
    /// How much memory, such as "1 GiB"
    #[arg(long, default_value = "1 GiB", value_name = "S", value_parser = quantity::bytes)]
    ram: u64,
    /// Let the clock count instructions, so that every run is the same
    #[arg(long)]
    icount: bool,
}

impl MachineOptions {
    fn settings(&self) -> Settings {
        Settings {
            machine: self.machine,
            cpu: self.cpu,
            cpus: self.cpus,
            ram_bytes: self.ram,
            clock: if self.icount { Clock::Instructions } else { Clock::Host },
            extra: Vec::new(),
        }
    }
}

fn main() -> ExitCode {
    match perform(Line::parse().task) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform(task: Task) -> anyhow::Result<ExitCode> {
    match task {
        Task::Setup => setup::run()?,
        Task::Run { image, machine } => return run::run(&image, &machine.settings()),
        Task::Scenario { files, log } => scenario::run(&files, log.as_deref())?,
        Task::Check { image, schema } => check(image.as_deref(), schema)?,
        Task::Pack { image, output } => {
            let loaded = system::load(&boot::image_folder(&image)?).map_err(|error| anyhow!("{error}"))?;
            pack::pack(&loaded, &build::hypervisor()?, &output)?;
        }
        Task::Test { fast } => test::run(fast)?,
        Task::Bench { machine, cpu, json } => bench::run(machine, cpu, json)?,
        Task::Ci => ci::run()?,
        Task::Size => size::run()?,
    }
    Ok(ExitCode::SUCCESS)
}

fn check(image: Option<&str>, schema: bool) -> anyhow::Result<()> {
    if schema {
        println!("{}", schema::text());
    }
    match image {
        Some(image) => system::check(&boot::image_folder(image)?).map_err(|error| anyhow!("{error}")),
        None => Ok(()),
    }
}
