//! What the checks find, and how it is said: where, what is wrong, how to mend it.
//!
//! Data only; [`check`](super::check::check) makes it. The hypervisor prints a [`Problem`] as one line; xtask, which has the
//! text of `system.toml` at hand, shows [`What`] and its [`Mend`] at the [`Place`].

use alloc::string::String;
use core::fmt;

use bulkhead_vdev::MAX_VCPUS;

use super::check::{LOG_CONSOLE, MAX_CMDLINE, MAX_NAME, MAX_VMS, RAM_GRANULE, RAM_RESERVE};
use super::{Architecture, FileId, KernelFormat, Size};
#[cfg(doc)]
use super::{Kernel, Vm};

/// Something in a system that cannot work. Shown as one line: where, what, how to mend it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    /// Where.
    pub place: Place,
    /// The VM's name, if the problem is one VM's and it has a name.
    pub vm: String,
    /// What.
    pub what: What,
}

/// The part of a system that a [`Problem`] is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// The list of VMs.
    Vms,
    /// A part of the VM with this index.
    Vm(usize, Field),
}

/// A part of one VM's description.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Field {
    /// [`Vm::name`]
    Name,
    /// [`Vm::vcpus`]
    Vcpus,
    /// The element of [`Vm::cpus`] with this index.
    Cpu(usize),
    /// [`Vm::ram_bytes`]
    Ram,
    /// [`Kernel::file`]
    KernelFile,
    /// [`Kernel::initrd`]
    Initrd,
    /// [`Kernel::cmdline`]
    Cmdline,
    /// [`KernelFormat::Flat::load`]
    Load,
    /// [`KernelFormat::Flat::entry`]
    Entry,
    /// [`Vm::hypervisor_leaf`]
    HypervisorLeaf,
}

/// What is wrong. Shown as a clause; [`What::mend`] says what to do about it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum What {
    /// There is no VM.
    NoVm,
    /// More than [`MAX_VMS`].
    TooManyVms(usize),
    /// A VM without a name.
    NameEmpty,
    /// A name of this many bytes.
    NameTooLong(usize),
    /// A name with a character that is not allowed in one.
    NameCharacter(char),
    /// A name that is not for VMs.
    NameReserved,
    /// Another VM has the name.
    NameTaken {
        /// That VM's index.
        first: usize,
    },
    /// A VM without a virtual CPU.
    NoVcpu,
    /// More than [`MAX_VCPUS`].
    TooManyVcpus(u32),
    /// A physical CPU that is not there.
    NoSuchCpu {
        /// Its number.
        cpu: u32,
        /// How many there are.
        cpus: u32,
    },
    /// A physical CPU that is listed twice.
    CpuTwice(u32),
    /// A VM without RAM.
    NoRam,
    /// RAM that is not a multiple of [`RAM_GRANULE`].
    RamUneven(u64),
    /// RAM that ends behind the guest's address space.
    RamTooLarge {
        /// Bytes asked for.
        ram: u64,
        /// Bytes that fit.
        most: u64,
    },
    /// A file that is not in the archive.
    NoSuchFile(FileId),
    /// A file without content.
    FileEmpty,
    /// The kernel and its RAM disk do not fit into the VM's RAM.
    FilesExceedRam {
        /// The VM's RAM in bytes.
        ram: u64,
        /// The kernel file's bytes.
        file: u64,
        /// The initial RAM disk's bytes; 0 without one.
        initrd: u64,
    },
    /// A command line of this many bytes.
    CmdlineTooLong(usize),
    /// A command line with a control character.
    CmdlineCharacter(char),
    /// A flat kernel that would lie outside the VM's RAM.
    FlatOutsideRam {
        /// Where it is to be loaded.
        load: u64,
        /// Its bytes.
        file: u64,
        /// Where RAM starts.
        start: u64,
        /// Where RAM ends.
        end: u64,
    },
    /// A flat kernel whose load address does not start a page.
    LoadUneven(u64),
    /// An entry outside the flat kernel.
    EntryOutsideFile {
        /// The entry.
        entry: u64,
        /// Where the kernel starts.
        start: u64,
        /// Where the kernel ends.
        end: u64,
    },
    /// An entry at which no instruction can start.
    EntryUneven(u64),
    /// A kernel for another architecture.
    FormatForeign {
        /// What the kernel is.
        format: KernelFormat,
        /// What the system is for.
        arch: Architecture,
    },
    /// CPUID is asked for where there is none.
    NoCpuid(Architecture),
}

impl What {
    /// What to do about it.
    #[must_use]
    pub const fn mend(&self) -> Mend<'_> {
        Mend(self)
    }
}

/// The way to mend something, for people. See [`What::mend`].
#[derive(Clone, Copy, Debug)]
pub struct Mend<'a>(&'a What);

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place {
            Place::Vm(index, _) if self.vm.is_empty() => write!(f, "VM number {}: ", index + 1)?,
            Place::Vm(..) => write!(f, "VM `{}`: ", self.vm.escape_debug())?,
            Place::Vms => {}
        }
        write!(f, "{}; {}", self.what, self.what.mend())
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NoVm => write!(f, "the system has no VM"),
            Self::TooManyVms(vms) => write!(f, "{vms} VMs are more than {MAX_VMS}"),
            Self::NameEmpty => write!(f, "the VM has no name"),
            Self::NameTooLong(bytes) => write!(f, "the name has {bytes} bytes, more than {MAX_NAME}"),
            Self::NameCharacter(bad) => write!(f, "{bad:?} cannot stand in a name"),
            Self::NameReserved => write!(f, "the name `{LOG_CONSOLE}` is Bulkhead's own"),
            Self::NameTaken { first } => write!(f, "VM number {} has the same name", first + 1),
            Self::NoVcpu => write!(f, "0 vCPUs cannot run anything"),
            Self::TooManyVcpus(vcpus) => write!(f, "{vcpus} vCPUs are more than {MAX_VCPUS}"),
            Self::NoSuchCpu { cpu, cpus } => write!(f, "CPU {cpu} is not one of the {cpus} possible CPUs"),
            Self::CpuTwice(cpu) => write!(f, "CPU {cpu} is listed twice"),
            Self::NoRam => write!(f, "the VM has no RAM"),
            Self::RamUneven(ram) => {
                write!(f, "{} of RAM is not a multiple of {}", Size(ram), Size(RAM_GRANULE))
            }
            Self::RamTooLarge { ram, most } => {
                write!(f, "{} of RAM is more than the {} of a guest's address space", Size(ram), Size(most))
            }
            Self::NoSuchFile(FileId(id)) => write!(f, "file number {id} is not in the archive"),
            Self::FileEmpty => write!(f, "the file is empty"),
            Self::FilesExceedRam { ram, file, initrd } => write!(
                f,
                "{} of RAM cannot hold a kernel of {}, a RAM disk of {} and {} for the machine's description",
                Size(ram),
                Size(file),
                Size(initrd),
                Size(RAM_RESERVE)
            ),
            Self::CmdlineTooLong(bytes) => {
                write!(f, "the command line has {bytes} bytes, more than {}", MAX_CMDLINE - 1)
            }
            Self::CmdlineCharacter(bad) => write!(f, "{bad:?} cannot stand in a command line"),
            Self::FlatOutsideRam { load, file, start, end } => write!(
                f,
                "{} at {load:#x} do not lie inside the VM's RAM, {start:#x} to {end:#x}",
                Size(file)
            ),
            Self::LoadUneven(load) => write!(f, "the load address {load:#x} does not start a page"),
            Self::EntryOutsideFile { entry, start, end } => {
                write!(f, "the entry {entry:#x} is outside the kernel, {start:#x} to {end:#x}")
            }
            Self::EntryUneven(entry) => write!(f, "no instruction can start at the entry {entry:#x}"),
            Self::FormatForeign { format, arch } => write!(f, "{format} does not run on {arch}"),
            Self::NoCpuid(arch) => {
                write!(f, "a CPU of {arch} has no leaf that could tell of a hypervisor")
            }
        }
    }
}

impl fmt::Display for Mend<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self.0 {
            What::NoVm => write!(f, "describe one in a [[vm]] table"),
            What::TooManyVms(_) => write!(f, "describe at most {MAX_VMS}"),
            What::NameEmpty => write!(f, "give it one: name = \"...\""),
            What::NameTooLong(_) => write!(f, "shorten it"),
            What::NameCharacter(_) => write!(f, "use letters, digits, `-` and `_`"),
            What::NameReserved | What::NameTaken { .. } => write!(f, "choose another name"),
            What::NoVcpu | What::TooManyVcpus(_) => write!(f, "give the VM 1 to {MAX_VCPUS}"),
            What::NoSuchCpu { cpus, .. } => write!(f, "name CPUs from 0 to {}", cpus.saturating_sub(1)),
            What::CpuTwice(_) => write!(f, "list it once"),
            What::NoRam => write!(f, "give it at least {}", Size(RAM_GRANULE)),
            What::RamUneven(ram) => {
                write!(f, "write \"{}\"", Size(ram.saturating_add(RAM_GRANULE - 1) & !(RAM_GRANULE - 1)))
            }
            What::RamTooLarge { most, .. } => write!(f, "give it at most {}", Size(most)),
            What::NoSuchFile(_) => write!(f, "pack the system again with `cargo xtask pack`"),
            What::FileEmpty => write!(f, "name another file"),
            What::FilesExceedRam { file, initrd, .. } => {
                let needed = file.saturating_add(initrd).saturating_add(RAM_RESERVE + RAM_GRANULE - 1);
                write!(f, "give it at least {}", Size(needed & !(RAM_GRANULE - 1)))
            }
            What::CmdlineTooLong(_) => write!(f, "shorten it"),
            What::CmdlineCharacter(_) => write!(f, "leave it out"),
            What::FlatOutsideRam { .. } => write!(f, "choose another load address or give the VM more RAM"),
            What::LoadUneven(load) => write!(f, "load it at {:#x}, a multiple of 4 KiB", load & !0xfff),
            What::EntryOutsideFile { .. } => write!(f, "enter the kernel at one of its own instructions"),
            What::EntryUneven(entry) => write!(f, "enter at {:#x}, a multiple of 4", entry & !3),
            What::FormatForeign { arch, .. } => write!(f, "use a kernel for {arch}"),
            What::NoCpuid(_) => write!(f, "leave it out"),
        }
    }
}
