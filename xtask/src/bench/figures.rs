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
