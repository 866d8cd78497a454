//! The system as its integrator described it, in the form that xtask compiles and the hypervisor boots.
//!
//! Pure and shared: xtask builds a [`System`] from TOML, [`check`](check::check)s it, encodes it; the hypervisor decodes it and
//! runs the same check again, because an archive is a claim like any other.

pub mod archive;
pub mod check;
pub mod problem;

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use serde::{Deserialize, Serialize};

/// A whole system: everything the archive says besides the files themselves.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct System {
    /// The processor architecture that all VMs (and the hypervisor) are for.
    pub arch: Architecture,
    /// The virtual machines, in the order of the file.
    pub vms: Vec<Vm>,
}

/// A processor architecture.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Architecture {
    /// ARMv8-A and later, 64 bit.
    Aarch64,
    /// PC, 64 bit.
    X86_64,
}

/// One virtual machine.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Vm {
    /// Unique; letters, digits, `-` and `_`, at most [`check::MAX_NAME`] bytes; `log` is taken.
    pub name: String,
    /// How many virtual CPUs, 1 to [`MAX_VCPUS`](bulkhead_vdev::MAX_VCPUS).
    pub vcpus: u32,
    /// The physical CPUs that the vCPUs are dealt to in turn; empty: all of the machine.
    pub cpus: Vec<u32>,
    /// A multiple of 2 MiB.
    pub ram_bytes: u64,
    /// What it boots.
    pub kernel: Kernel,
    /// What follows a fault of the guest.
    pub on_fault: OnFault,
    /// What an access to a place without memory or device does.
    pub unmapped: Unmapped,
    /// Whether CPUID tells the guest that it is one (x86_64 only).
    pub hypervisor_leaf: bool,
    /// What it may do that others may not.
    pub privileges: Vec<Privilege>,
}

/// What a VM may do that others may not.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Privilege {
    /// To make the hypervisor fail in its service, in order to try out what follows. Never for a system in use.
    ProvokePanic,
}

/// What a VM boots.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Kernel {
    /// How the file is laid out.
    pub format: KernelFormat,
    /// The kernel: an index into the archive's files.
    pub file: FileId,
    /// The initial RAM disk, if any.
    pub initrd: Option<FileId>,
    /// The kernel's command line.
    pub cmdline: String,
}

/// Index of a file in the archive.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FileId(pub u32);

/// How a kernel file is laid out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum KernelFormat {
    /// The arm64 Linux `Image` (Documentation/arch/arm64/booting).
    Arm64Image,
    /// Bytes that are copied to `load` and entered at `entry`, both guest-physical.
    Flat {
        /// Where the first byte goes.
        load: u64,
        /// Where the first vCPU starts.
        entry: u64,
    },
    /// The Linux kernel for PCs (Documentation/arch/x86/boot.rst).
    BzImage,
    /// ELF with the note of a PVH entry.
    Pvh,
    /// A multiboot kernel, version 1.
    Multiboot,
}

impl KernelFormat {
    /// Whether a CPU of this architecture boots it.
    #[must_use]
    pub const fn is_for(self, arch: Architecture) -> bool {
        match self {
            Self::Flat { .. } => true,
            Self::Arm64Image => matches!(arch, Architecture::Aarch64),
            Self::BzImage | Self::Pvh | Self::Multiboot => matches!(arch, Architecture::X86_64),
        }
    }
}

/// What follows a fault of the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum OnFault {
    /// The VM stays stopped.
    #[default]
    Stop,
    /// The VM starts again from its pristine image.
    Restart,
}

/// What an access to a place without memory or device does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum Unmapped {
    /// What the real machine would do (external abort on Arm, all ones on a PC); counted and logged once per place.
    #[default]
    AsHardware,
    /// A fault of the VM.
    Stop,
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Aarch64 => "aarch64",
            Self::X86_64 => "x86_64",
        })
    }
}

impl fmt::Display for KernelFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Arm64Image => "an arm64 Image",
            Self::Flat { .. } => "a flat binary",
            Self::BzImage => "a bzImage",
            Self::Pvh => "a PVH kernel",
            Self::Multiboot => "a multiboot kernel",
        })
    }
}

/// The compiled form of a system.
#[must_use]
pub fn encode(system: &System) -> Vec<u8> {
    postcard::to_allocvec(system).expect("strings, integers and sequences of known length always encode")
}

/// Reads the compiled form back. What it says is still to be [`check`](check::check)ed.
///
/// # Errors
/// [`Undecodable`], if this is not the compiled form of a system.
pub fn decode(bytes: &[u8]) -> Result<System, Undecodable> {
    decode_value(bytes)
}

/// Reads one value that fills `bytes` to the last.
fn decode_value<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, Undecodable> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        Ok((_, rest)) => Err(Undecodable::TooLong { by: rest.len() }),
        Err(postcard::Error::DeserializeUnexpectedEnd) => Err(Undecodable::TooShort),
        Err(_) => Err(Undecodable::NoSuchValue),
    }
}

/// Why bytes are not the compiled form of a system.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Undecodable {
    /// They end in the middle of a value.
    TooShort,
    /// They go on after the last value.
    TooLong {
        /// Bytes left over.
        by: usize,
    },
    /// They hold a number or a text that no value has.
    NoSuchValue,
}

impl fmt::Display for Undecodable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooShort => write!(f, "it ends too early"),
            Self::TooLong { by } => write!(f, "{by} bytes follow its end"),
            Self::NoSuchValue => write!(f, "it holds a value that does not exist"),
        }
    }
}

/// A number of bytes, shown in the largest unit that is exact: `64 MiB`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(&str, u32); 3] = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
        for (unit, shift) in UNITS {
            if self.0 != 0 && self.0.trailing_zeros() >= shift {
                return write!(f, "{} {unit}", self.0 >> shift);
            }
        }
        write!(f, "{} bytes", self.0)
    }
}

#[cfg(test)]
mod tests {
    use alloc::format;
    use alloc::string::ToString;
    use alloc::vec;
    use proptest::prelude::*;

    use super::*;

    /// One VM that passes every check, with a kernel in file 0 and an initial RAM disk in file 1.
    pub(super) fn linux() -> Vm {
        Vm {
            name: "linux".into(),
            vcpus: 4,
            cpus: vec![],
            ram_bytes: 256 << 20,
            kernel: Kernel {
                format: KernelFormat::Arm64Image,
                file: FileId(0),
                initrd: Some(FileId(1)),
                cmdline: "console=ttyAMA0".into(),
            },
            on_fault: OnFault::Stop,
            unmapped: Unmapped::AsHardware,
            hypervisor_leaf: false,
            privileges: vec![],
        }
    }

    pub(super) fn system(vms: Vec<Vm>) -> System {
        System { arch: Architecture::Aarch64, vms }
    }

    fn any_format() -> impl Strategy<Value = KernelFormat> {
        prop_oneof![
            Just(KernelFormat::Arm64Image),
            Just(KernelFormat::BzImage),
            Just(KernelFormat::Pvh),
            Just(KernelFormat::Multiboot),
            (any::<u64>(), any::<u64>()).prop_map(|(load, entry)| KernelFormat::Flat { load, entry }),
        ]
    }

    fn any_kernel() -> impl Strategy<Value = Kernel> {
        (any_format(), 0..4_u32, proptest::option::of(0..4_u32), ".{0,20}").prop_map(
            |(format, file, initrd, cmdline)| Kernel {
                format,
                file: FileId(file),
                initrd: initrd.map(FileId),
                cmdline,
            },
        )
    }

    fn any_vm() -> impl Strategy<Value = Vm> {
        let numbers = (0..20_u32, proptest::collection::vec(0..20_u32, 0..4), any::<u64>());
        (".{0,8}", numbers, any_kernel(), any::<[bool; 4]>()).prop_map(
            |(name, (vcpus, cpus, ram_bytes), kernel, [restart, stop, hypervisor_leaf, panics])| Vm {
                name,
                vcpus,
                cpus,
                ram_bytes,
                kernel,
                on_fault: if restart { OnFault::Restart } else { OnFault::Stop },
                unmapped: if stop { Unmapped::Stop } else { Unmapped::AsHardware },
                hypervisor_leaf,
                privileges: if panics { vec![Privilege::ProvokePanic] } else { vec![] },
            },
        )
    }

    /// Any system that can be written down, sound or not.
    pub(super) fn any_system() -> impl Strategy<Value = System> {
        let arch = prop_oneof![Just(Architecture::Aarch64), Just(Architecture::X86_64)];
        (arch, proptest::collection::vec(any_vm(), 0..4)).prop_map(|(arch, vms)| System { arch, vms })
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded_again(system in any_system()) {
            prop_assert_eq!(decode(&encode(&system)), Ok(system));
        }

        #[test]
        fn a_shortened_or_lengthened_form_is_refused(system in any_system(), cut in any::<prop::sample::Index>()) {
            let mut bytes = encode(&system);
            let kept = cut.index(bytes.len());
            prop_assert!(decode(&bytes[..kept]).is_err());
            bytes.push(0);
            prop_assert_eq!(decode(&bytes), Err(Undecodable::TooLong { by: 1 }));
        }

        #[test]
        fn any_bytes_decode_or_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&bytes).map_err(|error| error.to_string());
        }
    }

    #[test]
    fn a_size_is_shown_in_the_largest_exact_unit() {
        let shown =
            [0, 100, 2048, 64 << 20, 3 << 30, (1 << 30) + (2 << 20)].map(|bytes| Size(bytes).to_string());
        assert_eq!(
            format!("{shown:?}"),
            r#"["0 bytes", "100 bytes", "2 KiB", "64 MiB", "3 GiB", "1026 MiB"]"#
        );
    }
}
