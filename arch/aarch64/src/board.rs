//! The machine that a guest finds, made of one VM's configuration: devices, payload, device tree. Pure.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec;
use alloc::vec::Vec;
use bulkhead::arch::{Board, Entry, Files, Place, Segment, Window, Wired};
use bulkhead::config::{self, KernelFormat};
use bulkhead_firmware_stubs::arm64_image::Header;
use bulkhead_firmware_stubs::fdt::GuestTree;
use bulkhead_firmware_stubs::placement::{Extent, Request};
use bulkhead_firmware_stubs::seeds::Seeds;
use bulkhead_vdev::pl011::Pl011;
use bulkhead_vdev::pl031::Pl031;
use bulkhead_vdev::{Device, Gpa, virt};

/// The registers of UART and clock take a page each.
const DEVICES: [Gpa; 2] = [virt::UART, virt::RTC];
const DEVICE_BYTES: u64 = 0x1000;
/// The GIC's register blocks: 64 KiB, and 128 KiB for each vCPU.
pub const GICD_BYTES: u64 = 0x1_0000;
/// See above.
pub const GICR_BYTES: u64 = 0x2_0000;

/// Whether a device of a guest with `vcpus` is at `at`, its interrupt controller included.
#[must_use]
pub fn has_device(at: Gpa, vcpus: usize) -> bool {
    let is_in = |start: Gpa, bytes: u64| at.0.wrapping_sub(start.0) < bytes;
    DEVICES.iter().any(|start| is_in(*start, DEVICE_BYTES))
        || is_in(virt::GICD, GICD_BYTES)
        || is_in(virt::GICR, GICR_BYTES * vcpus as u64)
}

/// The board of `vm`, which boots from `files`.
///
/// # Errors
/// One line that says why the payload cannot boot in this VM.
pub fn board(vm: &config::Vm, files: Files, seeds: Option<Seeds>) -> Result<Board, String> {
    let ram = Extent { start: virt::RAM, bytes: vm.ram_bytes };
    let (kernel, pc) = kernel(vm.kernel.format, files.kernel, ram)?;
    let tree = |initrd| {
        let tree = GuestTree {
            vcpus: vm.vcpus,
            ram: &[ram],
            command_line: &vm.kernel.cmdline,
            initrd,
            rng_seed: seeds.map(|seeds| seeds.rng),
            kaslr_seed: seeds.map(|seeds| seeds.kaslr),
            uart: true,
            rtc: true,
        };
        tree.to_dtb()
    };
    let initrd_bytes = files.initrd.map(|initrd| initrd.len() as u64);
    let any = initrd_bytes.map(|bytes| Extent { start: virt::RAM, bytes });
    let request = Request { ram, kernel, initrd_bytes, device_tree_bytes: tree(any).len() as u64 };
    let placed = request.place().map_err(|error| error.to_string())?;
    let device_tree: &'static [u8] = Box::leak(tree(placed.initrd).into_boxed_slice());

    let mut segments = Vec::new();
    segments.push(Segment { to: placed.kernel.start, bytes: files.kernel });
    segments.push(Segment { to: placed.device_tree.start, bytes: device_tree });
    if let (Some(place), Some(bytes)) = (placed.initrd, files.initrd) {
        segments.push(Segment { to: place.start, bytes });
    }
    let (devices, windows) = devices();
    Ok(Board {
        devices,
        windows,
        segments,
        // The boot protocol of arm64 Linux: x0 is the device tree, x1 to x3 are 0.
        entry: Entry { pc, arguments: [placed.device_tree.start.0, 0, 0, 0], state: 0 },
    })
}

/// Where the kernel lies and where it is entered.
fn kernel(format: KernelFormat, file: &[u8], ram: Extent) -> Result<(Extent, Gpa), String> {
    match format {
        KernelFormat::Arm64Image => {
            let header = Header::parse(file).map_err(|error| error.to_string())?;
            let extent = header
                .extent(ram.start, file.len() as u64)
                .ok_or_else(|| String::from("the kernel's header asks for a place beyond all memory"))?;
            Ok((extent, extent.start))
        }
        KernelFormat::Flat { load, entry } => {
            Ok((Extent { start: Gpa(load), bytes: file.len() as u64 }, Gpa(entry)))
        }
        KernelFormat::BzImage | KernelFormat::Pvh | KernelFormat::Multiboot => {
            Err(format!("{format} is for another architecture"))
        }
    }
}

fn devices() -> (Vec<Wired>, Vec<Window>) {
    let wired = |device: Box<dyn Device>, line| Wired { device, line: Some(line) };
    let window = |base, device| Window { base: Place::Memory(base), len: DEVICE_BYTES, device, offset: 0 };
    (
        vec![wired(Box::new(Pl011::new()), virt::UART_INTID), wired(Box::new(Pl031::new()), virt::RTC_INTID)],
        DEVICES.into_iter().enumerate().map(|(device, base)| window(base, device)).collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_window_and_the_interrupt_controller_are_devices() {
        for window in devices().1 {
            let Place::Memory(at) = window.base else { panic!("a port on Arm") };
            assert!(has_device(at, 1));
            assert!(has_device(Gpa(at.0 + window.len - 1), 1));
        }
        assert!(has_device(Gpa(0x0800_ffff), 1), "distributor");
        assert!(has_device(Gpa(0x080d_ffff), 2), "second redistributor");
        assert!(!has_device(Gpa(0x080d_ffff), 1), "beyond the last redistributor");
        assert!(!has_device(Gpa(0x0902_0000), 1));
        assert!(!has_device(virt::RAM, 1));
    }
}
