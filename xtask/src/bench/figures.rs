//! What other hypervisors need for the same operations, measured on the same emulator on 2026-11-22: instructions, on a
//! cortex-a57, averages over 1,000 to 10,000 repeats. The versions are those that their projects ship: Linux 6.1's KVM with
//! QEMU 10.0.2 as its user space, Xen 4.17 dom0less, Jailhouse 0.12, Bao.

/// An operation with the peers' figures.
pub(super) struct Row {
    /// What the bench guest calls it.
    pub(super) name: &'static str,
    /// What it is.
    pub(super) title: &'static str,
    pub(super) kvm: u32,
    /// With the virtualisation host extensions (`-cpu max`).
    pub(super) kvm_vhe: u32,
    pub(super) xen: u32,
    /// `None`: passed through to the hardware, or not possible.
    pub(super) jailhouse: Option<u32>,
    pub(super) bao: Option<u32>,
    /// Bulkhead must stay below, on a cortex-a57.
    pub(super) bar: u32,
}

pub(super) const ROWS: [Row; 7] = [
    Row {
        name: "hypercall",
        title: "hypercall (PSCI_VERSION)",
        kvm: 1584,
        kvm_vhe: 1076,
        xen: 477,
        jailhouse: Some(143),
        bao: Some(209),
        bar: 100,
    },
    Row {
        name: "gicd-typer-read",
        title: "virtual GICD_TYPER read",
        kvm: 2332,
        kvm_vhe: 1848,
        xen: 612,
        jailhouse: Some(287),
        bao: Some(227),
        bar: 180,
    },
    Row {
        name: "uart-fr-read",
        title: "emulated UART status read",
        kvm: 6534,
        kvm_vhe: 6172,
        xen: 636,
        jailhouse: None,
        bao: None,
        bar: 220,
    },
    Row {
        name: "self-sgi",
        title: "self-SGI to EOI",
        kvm: 3092,
        kvm_vhe: 2629,
        xen: 1147,
        jailhouse: Some(1451),
        bao: Some(850),
        bar: 350,
    },
    Row {
        name: "timer-busy",
        title: "virtual timer interrupt latency",
        kvm: 2955,
        kvm_vhe: 2451,
        xen: 1089,
        jailhouse: Some(208),
        bao: Some(208),
        bar: 150,
    },
    Row {
        name: "timer-wfi",
        title: "the same from WFI",
        kvm: 2602,
        kvm_vhe: 2374,
        xen: 4336,
        jailhouse: Some(208),
        bao: Some(208),
        bar: 250,
    },
    Row {
        name: "ipi",
        title: "IPI to the second vCPU",
        kvm: 5579,
        kvm_vhe: 4538,
        xen: 7729,
        jailhouse: None,
        bao: Some(853),
        bar: 500,
    },
];

/// Instructions before the first one of a guest, without copying and verifying what the guest boots. Xen 4.17 needs 57
/// million, Bao 800 million (with a 36 MB image built in).
pub(super) const FIRST_INSTRUCTION_BAR: u64 = 5_000_000;

/// How much longer Linux may take from its first message to /init than natively, in thousandths. Bao needs 0.5 more, Xen 7,
/// KVM 240.
pub(super) const LINUX_BAR_PERMILLE: f64 = 10.0;

/// What the peers need for an operation of a PC, on one vendor's processors.
#[derive(Clone, Copy)]
pub(super) struct PcPeers {
    pub(super) kvm: Option<u32>,
    pub(super) xen: Option<u32>,
    /// Bulkhead must stay below; `None`: the operation does not exist there.
    pub(super) bar: Option<u32>,
}

/// An operation of a PC with the peers' figures.
pub(super) struct PcRow {
    /// What the bench guest calls it.
    pub(super) name: &'static str,
    /// What it is.
    pub(super) title: &'static str,
    /// SVM on QEMU, without nrip-save and decode-assists: KVM (microvm, mitigations off) and Xen 4.17 (PVH).
    pub(super) svm: PcPeers,
    /// VMX on Bochs 2.7 as skylake_x: KVM.
    pub(super) vmx: PcPeers,
}

const fn svm(kvm: u32, xen: Option<u32>, bar: u32) -> PcPeers {
    PcPeers { kvm: Some(kvm), xen, bar: Some(bar) }
}

const fn vmx(kvm: Option<u32>, bar: u32) -> PcPeers {
    PcPeers { kvm, xen: None, bar: Some(bar) }
}

const fn row(name: &'static str, title: &'static str, svm: PcPeers, vmx: PcPeers) -> PcRow {
    PcRow { name, title, svm, vmx }
}

/// Averages over 2,000 repeats, the loop's two instructions included, measured on 2026-11-22.
pub(super) const PC_ROWS: [PcRow; 16] = [
    row("cpuid", "CPUID", svm(2805, Some(5367), 400), vmx(Some(980), 300)),
    row("hypercall", "hypercall (VMMCALL, VMCALL)", svm(3013, Some(5435), 300), vmx(Some(1027), 250)),
    row("out-uart", "OUT to the UART's scratch register", svm(5145, Some(1098), 350), vmx(Some(3167), 350)),
    row("in-uart", "IN from the UART's scratch register", svm(5145, Some(1098), 350), vmx(Some(3167), 350)),
    row("lapic-read", "local APIC read by MMIO", svm(3659, Some(14159), 900), vmx(Some(7425), 5)),
    row("ioapic", "IOAPIC select and window", svm(14743, None, 1800), vmx(Some(7667), 1200)),
    row("rdmsr", "RDMSR IA32_APIC_BASE", svm(2872, Some(5363), 400), vmx(Some(1098), 300)),
    row(
        "self-ipi-x2apic",
        "self-IPI by x2APIC, ICR to EOI",
        svm(7631, Some(11591), 1000),
        vmx(Some(4156), 150),
    ),
    row(
        "self-ipi-xapic",
        "self-IPI by xAPIC, ICR to EOI",
        svm(8773, Some(36083), 2200),
        vmx(Some(9613), 200),
    ),
    row("timer-busy", "APIC timer lateness, busy", svm(5827, Some(20873), 700), vmx(Some(6510), 600)),
    row("timer-hlt", "the same from HLT", svm(9371, Some(22142), 900), vmx(Some(9540), 800)),
    row(
        "ipi",
        "IPI to the second vCPU, seen in memory",
        svm(22446, Some(65697), 2500),
        vmx(Some(22434), 2000),
    ),
    row("mov-cr3", "MOV to CR3", svm(7, Some(7), 8), vmx(None, 8)),
    row("cr0-ts", "CR0.TS set and cleared", svm(7, Some(13_380), 10), vmx(None, 10)),
    row("invlpg", "INVLPG", svm(7, Some(7), 8), vmx(None, 8)),
    row("rdtsc", "RDTSC", svm(7, Some(7), 8), vmx(None, 8)),
];

/// Instructions before the first one of a guest on a PC, without copying and verifying what the guest boots.
pub(super) const PC_FIRST_INSTRUCTION_BAR: f64 = 20_000_000.0;

/// How much longer Linux may take on a PC, in thousandths.
pub(super) const PC_LINUX_BAR_PERMILLE: f64 = 20.0;
