//! The machine that a guest finds, made of one VM's configuration: devices, payload, firmware's tables. Pure.

use alloc::boxed::Box;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use bulkhead::arch::{Board, Entry, Files, Place, RamRange, Segment, Window, Wired};
use bulkhead::config::{self, KernelFormat};
use bulkhead_firmware_stubs::pc_boot::{Content, Guest, Kernel, Piece, Prepared, Start};
use bulkhead_firmware_stubs::placement::Extent;
use bulkhead_firmware_stubs::seeds::Seeds;
use bulkhead_firmware_stubs::{bzimage, multiboot1, pc_placement, pvh};
use bulkhead_vdev::acpi_pm::AcpiPm;
use bulkhead_vdev::cmos::Cmos;
use bulkhead_vdev::delay_port::DelayPort;
use bulkhead_vdev::pc::{self, PortWindow};
use bulkhead_vdev::pc_reset::PcReset;
use bulkhead_vdev::pc_timers::PcTimers;
use bulkhead_vdev::pci::PciHost;
use bulkhead_vdev::uart16550::Uart16550;
use bulkhead_vdev::{Device, Gpa};

/// In which state a vCPU starts: what [`Entry::state`] holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum StartState {
    /// As after power-on: real mode at the reset vector.
    PowerOn = 0,
    /// Real mode at `pc`, a multiple of 4 KiB below 1 MiB: what a start-up interrupt leaves (SDM Vol. 3A, 9.4).
    Real = 1,
    /// 64-bit Linux: long mode, flat, interrupts off. RSI is argument 0, CR3 argument 1; GDTR has base argument 2 and
    /// limit argument 3. CS is selector 0x10, DS, ES and SS are 0x18 (Linux, Documentation/arch/x86/boot.rst).
    Linux64 = 2,
    /// Protected mode with 32 bits, flat, paging and interrupts off. EBX is argument 0, EAX argument 1. GDTR has base
    /// argument 2 and limit argument 3, CS is selector 0x10, DS, ES, FS, GS and SS are 0x18.
    Protected = 3,
    /// 32-bit Linux: as [`StartState::Protected`], but ESI is argument 0; EAX, EBX, EBP and EDI are 0.
    Linux32 = 4,
}

/// Where a guest with so many bytes of RAM finds it. The line behind it is as long; what video memory hides of it is unused.
#[must_use]
pub fn ram(bytes: u64) -> Vec<RamRange> {
    let [low, firmware, high] = pc_placement::ram(bytes);
    let below_4_gib = [low, firmware].map(|piece| (piece, piece.start.0));
    let pieces = below_4_gib.into_iter().chain([(high, pc::HOLE.0)]);
    let range = |(piece, offset): (Extent, u64)| RamRange { at: piece.start, offset, bytes: piece.bytes };
    pieces.filter(|(piece, _)| piece.bytes > 0).map(range).collect()
}

/// The board of `vm`, which boots from `files`.
///
/// # Errors
/// One line that says why the payload cannot boot in this VM.
pub fn board(vm: &config::Vm, files: Files, seeds: Option<Seeds>) -> Result<Board, String> {
    let guest = Guest {
        ram_bytes: vm.ram_bytes,
        vcpus: vm.vcpus,
        command_line: &vm.kernel.cmdline,
        initrd_bytes: files.initrd.map(|initrd| initrd.len() as u64),
        rng_seed: seeds.map(|seeds| seeds.rng),
    };
    let kernel = kernel(vm.kernel.format, files.kernel)?;
    let Prepared { pieces, start } = kernel.prepare(&guest).map_err(|error| error.to_string())?;
    let (devices, windows) = devices(vm.ram_bytes);
    Ok(Board { devices, windows, segments: segments(pieces, files), entry: entry(start) })
}

fn kernel(format: KernelFormat, file: &[u8]) -> Result<Kernel, String> {
    match format {
        KernelFormat::BzImage => {
            bzimage::Kernel::parse(file).map(Kernel::BzImage).map_err(|error| error.to_string())
        }
        KernelFormat::Pvh => pvh::Kernel::parse(file).map(Kernel::Pvh).map_err(|error| error.to_string()),
        KernelFormat::Multiboot => {
            multiboot1::Kernel::parse(file).map(Kernel::Multiboot).map_err(|error| error.to_string())
        }
        KernelFormat::Flat { load, entry } => {
            Ok(Kernel::Multiboot(multiboot1::Kernel::flat(file.len(), Gpa(load), Gpa(entry))))
        }
        KernelFormat::Arm64Image => Err(String::from("its kernel is for another architecture")),
    }
}

/// What a start copies, in bytes that outlive every restart.
fn segments(pieces: Vec<Piece>, files: Files) -> Vec<Segment> {
    static ZEROS: [u8; 0x4000] = [0; 0x4000];
    let mut segments = Vec::new();
    for Piece { to, content } in pieces {
        let bytes: &'static [u8] = match content {
            Content::Kernel(part) => files.kernel.get(part).expect("it was found in this file"),
            Content::Initrd => files.initrd.unwrap_or_default(),
            Content::Bytes(bytes) => Box::leak(bytes.into_boxed_slice()),
            Content::Fixed(bytes) => bytes,
            Content::Zeros(count) => {
                let whole = ZEROS.len() as u64;
                segments.extend((0..count).step_by(ZEROS.len()).map(|offset| Segment {
                    to: Gpa(to.0 + offset),
                    bytes: if count - offset < whole { rest(&ZEROS, count - offset) } else { &ZEROS },
                }));
                continue;
            }
        };
        segments.push(Segment { to, bytes });
    }
    segments
}

/// The first `count` bytes of `zeros`, which are more.
fn rest(zeros: &'static [u8], count: u64) -> &'static [u8] {
    usize::try_from(count).ok().and_then(|count| zeros.get(..count)).unwrap_or(zeros)
}

fn entry(start: Start) -> Entry {
    let (state, pc, [first, second], gdt) = match start {
        Start::Linux64 { entry, boot_params, page_tables, descriptors } => {
            (StartState::Linux64, entry, [boot_params.0, page_tables.0], descriptors)
        }
        Start::Linux32 { entry, boot_params, descriptors } => {
            (StartState::Linux32, entry, [boot_params.0, 0], descriptors)
        }
        Start::Protected { entry, ebx, eax, descriptors } => {
            (StartState::Protected, entry, [ebx.0, eax.into()], descriptors)
        }
    };
    Entry { pc, arguments: [first, second, gdt.base.0, gdt.limit.into()], state: state as u32 }
}

/// The devices that the core finds. Interrupt controllers are the back end's own.
fn devices(ram_bytes: u64) -> (Vec<Wired>, Vec<Window>) {
    let mut wiring = Wiring::default();
    wiring.add(Box::new(Uart16550::new(true)), Some(pc::COM1_LINE), &pc::COM1);
    wiring.add(Box::new(Uart16550::new(false)), Some(pc::COM2_LINE), &pc::COM2);
    let timers = wiring.add(Box::new(PcTimers::new()), Some(pc::PIT_LINE), &pc::PIT);
    wiring.add(Box::new(Cmos::new(ram_bytes)), Some(pc::RTC_LINE), &pc::CMOS);
    wiring.add(Box::new(AcpiPm::new()), Some(pc::SCI_LINE), &pc::ACPI);
    wiring.add(Box::new(PcReset::new()), None, &pc::RESET);
    wiring.add(Box::new(DelayPort), None, &pc::DELAY);
    let pci = wiring.add(Box::new(PciHost::new()), None, &pc::PCI_CONFIG);
    wiring.windows.extend([
        Window {
            base: Place::Memory(pc::PCI_ECAM),
            len: pc::PCI_ECAM_BYTES,
            device: pci,
            offset: pc::PCI_ECAM_OFFSET,
        },
        Window {
            base: Place::Memory(pc::HPET),
            len: pc::HPET_BYTES,
            device: timers,
            offset: pc::HPET_OFFSET,
        },
    ]);
    (wiring.devices, wiring.windows)
}

/// Devices and windows so far.
#[derive(Default)]
struct Wiring {
    devices: Vec<Wired>,
    windows: Vec<Window>,
}

impl Wiring {
    /// Adds a device with its ports; says which one it is.
    fn add(&mut self, device: Box<dyn Device>, line: Option<u32>, ports: &[PortWindow]) -> usize {
        let index = self.devices.len();
        self.devices.push(Wired { device, line });
        self.windows.extend(ports.iter().map(|ports| Window {
            base: Place::Port(ports.port),
            len: ports.len,
            device: index,
            offset: ports.offset,
        }));
        index
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_memory_is_one_line_without_a_gap_for_devices() {
        let piece = |at, offset, bytes| RamRange { at: Gpa(at), offset, bytes };
        let large =
            [piece(0, 0, 0xa_0000), piece(0xc_0000, 0xc_0000, 0xbff4_0000), piece(4 << 30, 3 << 30, 2 << 30)];
        assert_eq!(ram(5 << 30), large);
        assert_eq!(ram(64 << 20), [piece(0, 0, 0xa_0000), piece(0xc_0000, 0xc_0000, (64 << 20) - 0xc_0000)]);
    }

    fn flat(file: &'static [u8]) -> Board {
        let kernel = config::Kernel {
            format: KernelFormat::Flat { load: 0x10_0000, entry: 0x10_0002 },
            file: config::FileId(0),
            initrd: None,
            cmdline: String::new(),
        };
        let vm = config::Vm {
            name: "flat".into(),
            vcpus: 1,
            cpus: Vec::new(),
            ram_bytes: 4 << 20,
            kernel,
            on_fault: config::OnFault::Stop,
            unmapped: config::Unmapped::Stop,
            hypervisor_leaf: false,
            privileges: Vec::new(),
        };
        board(&vm, Files { kernel: file, initrd: None }, None).unwrap()
    }

    #[test]
    fn a_flat_kernel_is_entered_in_protected_mode() {
        let board = flat(b"\x90\x90\xf4");
        assert_eq!((board.entry.state, board.entry.pc), (StartState::Protected as u32, Gpa(0x10_0002)));
        assert_eq!((board.segments[0].to, board.segments[0].bytes), (Gpa(0x10_0000), &b"\x90\x90\xf4"[..]));
        assert_eq!(board.entry.arguments[3], 31, "four descriptors");
    }

    #[test]
    fn zeros_are_as_many_as_asked_for() {
        let pieces =
            [5, 0x4000, 0x9001].map(|count| Piece { to: Gpa(0x1000), content: Content::Zeros(count) });
        for piece in pieces {
            let Content::Zeros(count) = piece.content else { unreachable!() };
            let segments = segments(Vec::from([piece]), Files { kernel: b"", initrd: None });
            let mut next = Gpa(0x1000);
            for Segment { to, bytes } in segments {
                assert_eq!(to, next);
                next = Gpa(to.0 + bytes.len() as u64);
            }
            assert_eq!(next, Gpa(0x1000 + count));
        }
    }

    #[test]
    fn every_window_belongs_to_a_device_and_overlaps_no_other() {
        let board = flat(b"\xf4");
        let (ports, memory): (Vec<&Window>, Vec<&Window>) =
            board.windows.iter().partition(|window| matches!(window.base, Place::Port(_)));
        for windows in [ports, memory] {
            let mut bus = bulkhead_vdev::bus::Bus::new();
            for window in windows {
                assert!(window.device < board.devices.len());
                let base = match window.base {
                    Place::Port(port) => Gpa(port.into()),
                    Place::Memory(at) => at,
                };
                assert_eq!(bus.add(base, window.len, ()), Ok(()), "{window:?}");
            }
        }
    }
}
