//! Which of VMX's controls a guest runs with, computed from what the CPU says it can (SDM Vol. 3C, 25.6 to 25.8; Vol. 3D,
//! appendix A). Pure.
//!
//! What a guest cannot be confined or run without is required: a CPU that lacks it is refused by name. All else is used
//! where it is present, and [`Features`] says so.

use bulkhead::arch::Unsupported;

/// Pin-based controls (25.6.1).
pub mod pin {
    /// A physical interrupt exits.
    pub const EXTERNAL: u32 = 1;
    /// A physical NMI exits.
    pub const NMI: u32 = 1 << 3;
    /// The guest's NMIs are blocked by its own.
    pub const VIRTUAL_NMI: u32 = 1 << 5;
    /// A timer counts down while the guest runs.
    pub const TIMER: u32 = 1 << 6;
}

/// Primary processor-based controls (25.6.2).
pub mod primary {
    /// Exit when the guest can take an interrupt.
    pub const INTERRUPT_WINDOW: u32 = 1 << 2;
    /// RDTSC adds the offset.
    pub const TSC_OFFSET: u32 = 1 << 3;
    /// HLT exits.
    pub const HLT: u32 = 1 << 7;
    /// INVLPG exits.
    pub const INVLPG: u32 = 1 << 9;
    /// MWAIT exits.
    pub const MWAIT: u32 = 1 << 10;
    /// RDPMC exits.
    pub const RDPMC: u32 = 1 << 11;
    /// RDTSC exits.
    pub const RDTSC: u32 = 1 << 12;
    /// Writes of CR3 exit.
    pub const CR3_LOAD: u32 = 1 << 15;
    /// Reads of CR3 exit.
    pub const CR3_STORE: u32 = 1 << 16;
    /// Writes of CR8 exit.
    pub const CR8_LOAD: u32 = 1 << 19;
    /// Reads of CR8 exit.
    pub const CR8_STORE: u32 = 1 << 20;
    /// CR8 is the virtual APIC's.
    pub const TPR_SHADOW: u32 = 1 << 21;
    /// Exit when the guest can take an NMI.
    pub const NMI_WINDOW: u32 = 1 << 22;
    /// Accesses to debug registers exit.
    pub const DEBUG_REGISTERS: u32 = 1 << 23;
    /// Every port exits.
    pub const UNCONDITIONAL_IO: u32 = 1 << 24;
    /// Bitmaps say which ports exit.
    pub const IO_BITMAPS: u32 = 1 << 25;
    /// A bitmap says which MSRs exit.
    pub const MSR_BITMAP: u32 = 1 << 28;
    /// MONITOR exits.
    pub const MONITOR: u32 = 1 << 29;
    /// PAUSE exits.
    pub const PAUSE: u32 = 1 << 30;
    /// The secondary controls count.
    pub const SECONDARY: u32 = 1 << 31;
}

/// Secondary processor-based controls (25.6.2).
pub mod secondary {
    /// A page stands for the APIC.
    pub const APIC_ACCESSES: u32 = 1;
    /// The second stage.
    pub const EPT: u32 = 1 << 1;
    /// RDTSCP works.
    pub const RDTSCP: u32 = 1 << 3;
    /// The APIC's MSRs are the virtual APIC's.
    pub const X2APIC: u32 = 1 << 4;
    /// Translations are tagged.
    pub const VPID: u32 = 1 << 5;
    /// WBINVD exits.
    pub const WBINVD: u32 = 1 << 6;
    /// Real mode and unpaged protected mode work.
    pub const UNRESTRICTED: u32 = 1 << 7;
    /// Reads of the virtual APIC do not exit.
    pub const APIC_REGISTERS: u32 = 1 << 8;
    /// The CPU itself delivers what is in the virtual APIC.
    pub const VIRTUAL_INTERRUPTS: u32 = 1 << 9;
    /// INVPCID works.
    pub const INVPCID: u32 = 1 << 12;
    /// ENCLS exits.
    pub const ENCLS: u32 = 1 << 15;
}

/// VM-exit controls (25.7.1).
pub mod exit {
    /// DR7 and IA32_DEBUGCTL are saved.
    pub const SAVE_DEBUG: u32 = 1 << 2;
    /// The host is in 64-bit mode.
    pub const HOST_64: u32 = 1 << 9;
    /// The vector of a physical interrupt is acknowledged and told.
    pub const ACKNOWLEDGE: u32 = 1 << 15;
    /// IA32_PAT is saved.
    pub const SAVE_PAT: u32 = 1 << 18;
    /// The host's IA32_PAT is loaded.
    pub const LOAD_PAT: u32 = 1 << 19;
    /// IA32_EFER is saved.
    pub const SAVE_EFER: u32 = 1 << 20;
    /// The host's IA32_EFER is loaded.
    pub const LOAD_EFER: u32 = 1 << 21;
}

/// VM-entry controls (25.8.1).
pub mod entry {
    /// DR7 and IA32_DEBUGCTL are loaded.
    pub const LOAD_DEBUG: u32 = 1 << 2;
    /// The guest is in IA-32e mode.
    pub const LONG_MODE: u32 = 1 << 9;
    /// IA32_PAT is loaded.
    pub const LOAD_PAT: u32 = 1 << 14;
    /// IA32_EFER is loaded.
    pub const LOAD_EFER: u32 = 1 << 15;
}

/// Bits of IA32_VMX_EPT_VPID_CAP (A.10).
mod translation {
    pub(super) const FOUR_LEVELS: u64 = 1 << 6;
    pub(super) const WRITE_BACK: u64 = 1 << 14;
    pub(super) const LARGE_2M: u64 = 1 << 16;
    pub(super) const LARGE_1G: u64 = 1 << 17;
    pub(super) const INVEPT: u64 = 1 << 20;
    pub(super) const INVEPT_SINGLE: u64 = 1 << 25;
    pub(super) const INVEPT_ALL: u64 = 1 << 26;
    pub(super) const INVVPID: u64 = 1 << 32;
    pub(super) const INVVPID_SINGLE: u64 = 1 << 41;
    pub(super) const INVVPID_ALL: u64 = 1 << 42;
}

/// The MSRs that say what VMX can do (appendix A).
mod msr {
    pub(super) const BASIC: u32 = 0x480;
    pub(super) const PIN: u32 = 0x481;
    pub(super) const PRIMARY: u32 = 0x482;
    pub(super) const EXIT: u32 = 0x483;
    pub(super) const ENTRY: u32 = 0x484;
    pub(super) const MISC: u32 = 0x485;
    pub(super) const CR0_FIXED0: u32 = 0x486;
    pub(super) const CR0_FIXED1: u32 = 0x487;
    pub(super) const CR4_FIXED0: u32 = 0x488;
    pub(super) const CR4_FIXED1: u32 = 0x489;
    pub(super) const SECONDARY: u32 = 0x48b;
    pub(super) const EPT_VPID: u32 = 0x48c;
    /// How far the `TRUE` variants of the first four are from them.
    pub(super) const TRUE: u32 = 12;
}

/// IA32_FEATURE_CONTROL.
pub const FEATURE_CONTROL: u32 = 0x3a;
const LOCKED: u64 = 1;
const VMX_OUTSIDE_SMX: u64 = 1 << 2;

/// What IA32_FEATURE_CONTROL has to be made, if anything.
///
/// # Errors
/// Firmware has locked it without VMX.
pub fn feature_control(value: u64) -> Result<Option<u64>, Unsupported> {
    match (value & LOCKED != 0, value & VMX_OUTSIDE_SMX != 0) {
        (true, true) => Ok(None),
        (true, false) => Err(Unsupported(
            "firmware has switched VMX off: switch it on in its set-up (VT-x, virtualisation)",
        )),
        (false, _) => Ok(Some(value | LOCKED | VMX_OUTSIDE_SMX)),
    }
}

/// A pair of bit sets: what must be 1, and what may be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Allowed {
    /// These must be 1.
    pub ones: u64,
    /// Only these may be 1.
    pub may: u64,
}

impl Allowed {
    /// The layout of the control MSRs.
    const fn of_controls(msr: u64) -> Self {
        Self { ones: msr & 0xffff_ffff, may: msr >> 32 }
    }

    /// Whether `value` obeys.
    #[must_use]
    pub const fn admits(self, value: u64) -> bool {
        value & self.ones == self.ones && value & !self.may == 0
    }
}

/// What the CPU can do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capabilities {
    basic: u64,
    misc: u64,
    ept_vpid: u64,
    /// Pin-based controls.
    pub pin: Allowed,
    /// Primary controls.
    pub primary: Allowed,
    /// Secondary controls; none where the CPU has none.
    pub secondary: Allowed,
    /// VM-exit controls.
    pub exit: Allowed,
    /// VM-entry controls.
    pub entry: Allowed,
    /// CR0 in VMX operation (A.7).
    pub cr0: Allowed,
    /// CR4 in VMX operation (A.8).
    pub cr4: Allowed,
}

impl Capabilities {
    /// Asks the CPU by `read`, which reads MSRs that exist.
    pub fn read(read: impl Fn(u32) -> u64) -> Self {
        let basic = read(msr::BASIC);
        let offset = if basic >> 55 & 1 != 0 { msr::TRUE } else { 0 };
        let primary = Allowed::of_controls(read(msr::PRIMARY + offset));
        let has_secondary = primary.may & u64::from(primary::SECONDARY) != 0;
        let secondary = Allowed::of_controls(if has_secondary { read(msr::SECONDARY) } else { 0 });
        let has_tables = secondary.may & u64::from(secondary::EPT | secondary::VPID) != 0;
        Self {
            basic,
            misc: read(msr::MISC),
            ept_vpid: if has_tables { read(msr::EPT_VPID) } else { 0 },
            pin: Allowed::of_controls(read(msr::PIN + offset)),
            primary,
            secondary,
            exit: Allowed::of_controls(read(msr::EXIT + offset)),
            entry: Allowed::of_controls(read(msr::ENTRY + offset)),
            cr0: Allowed { ones: read(msr::CR0_FIXED0), may: read(msr::CR0_FIXED1) },
            cr4: Allowed { ones: read(msr::CR4_FIXED0), may: read(msr::CR4_FIXED1) },
        }
    }

    /// The first word of a VMXON region and of each VMCS (A.1).
    #[must_use]
    pub const fn revision(&self) -> u32 {
        (self.basic & 0x7fff_ffff) as u32
    }
}

/// What is used of what not every CPU has.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Features {
    /// Leaves of 1 GiB in the second stage.
    pub gibibyte_pages: bool,
    /// Translations are tagged; otherwise each entry and exit forgets them.
    pub vpid: bool,
    /// INVEPT of one root; otherwise of all.
    pub invept_single: bool,
    /// INVVPID of one tag; otherwise of all.
    pub invvpid_single: bool,
    /// The preemption timer, and by how many bits the TSC is shifted for it.
    pub timer_shift: Option<u32>,
    /// The CPU serves the virtual APIC's registers, by page and by MSR, and delivers the interrupts that it holds.
    pub virtual_interrupts: bool,
    /// RDTSCP works in the guest.
    pub rdtscp: bool,
    /// INVPCID works in the guest.
    pub invpcid: bool,
    /// ENCLS exits: it has a bitmap.
    pub encls: bool,
}

/// The controls of every guest. What changes while it runs is not in here: windows, the APIC's mode, IA-32e mode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Controls {
    /// See the modules of these names.
    pub pin: u32,
    /// See above.
    pub primary: u32,
    /// See above.
    pub secondary: u32,
    /// See above.
    pub exit: u32,
    /// See above.
    pub entry: u32,
    /// What of it is not on every CPU.
    pub features: Features,
}

/// A control and what to say where it is missing.
type Required = &'static [(u32, &'static str)];

const PIN: Required = &[
    (pin::EXTERNAL, "the CPU's VMX does not exit on interrupts"),
    (pin::NMI, "the CPU's VMX does not exit on NMIs"),
    (pin::VIRTUAL_NMI, "the CPU's VMX has no virtual NMIs"),
];
const PRIMARY: Required = &[
    (primary::TSC_OFFSET, "the CPU's VMX does not offset the time stamp counter"),
    (primary::HLT, "the CPU's VMX does not exit on HLT"),
    (primary::MWAIT, "the CPU's VMX does not exit on MWAIT"),
    (primary::MONITOR, "the CPU's VMX does not exit on MONITOR"),
    (primary::RDPMC, "the CPU's VMX does not exit on RDPMC"),
    (primary::INTERRUPT_WINDOW, "the CPU's VMX has no interrupt windows"),
    (primary::NMI_WINDOW, "the CPU's VMX has no NMI windows"),
    (primary::TPR_SHADOW, "the CPU's VMX has no TPR shadow"),
    (primary::IO_BITMAPS, "the CPU's VMX has no I/O bitmaps"),
    (primary::MSR_BITMAP, "the CPU's VMX has no MSR bitmap"),
    (primary::SECONDARY, "the CPU's VMX has no secondary controls, so no EPT"),
];
const SECONDARY: Required = &[
    (secondary::EPT, "the CPU's VMX has no EPT"),
    (secondary::APIC_ACCESSES, "the CPU's VMX has no page that stands for the APIC"),
    (secondary::UNRESTRICTED, "the CPU's VMX has no unrestricted guests"),
];
const EXIT: Required = &[
    (exit::SAVE_DEBUG, "the CPU's VMX does not save DR7"),
    (exit::HOST_64, "the CPU's VMX has no 64-bit hosts"),
    (exit::ACKNOWLEDGE, "the CPU's VMX does not acknowledge interrupts on exit"),
    (exit::SAVE_PAT, "the CPU's VMX does not save PAT"),
    (exit::LOAD_PAT, "the CPU's VMX does not load the host's PAT"),
    (exit::SAVE_EFER, "the CPU's VMX does not save EFER"),
    (exit::LOAD_EFER, "the CPU's VMX does not load the host's EFER"),
];
const ENTRY: Required = &[
    (entry::LOAD_DEBUG, "the CPU's VMX does not load DR7"),
    (entry::LONG_MODE, "the CPU's VMX has no 64-bit guests"),
    (entry::LOAD_PAT, "the CPU's VMX does not load the guest's PAT"),
    (entry::LOAD_EFER, "the CPU's VMX does not load the guest's EFER"),
];

/// Exits that would make a guest crawl or that nobody serves: a CPU that forces them is refused.
const UNWANTED: u32 = primary::INVLPG
    | primary::RDTSC
    | primary::CR3_LOAD
    | primary::CR3_STORE
    | primary::CR8_LOAD
    | primary::CR8_STORE
    | primary::DEBUG_REGISTERS
    | primary::PAUSE;

/// Used where they are present.
const WANTED_SECONDARY: u32 =
    secondary::RDTSCP | secondary::VPID | secondary::WBINVD | secondary::INVPCID | secondary::ENCLS;

/// All that the CPU needs to serve the virtual APIC: with less, each access exits and interrupts are injected.
const VIRTUAL_APIC: u32 =
    secondary::APIC_REGISTERS | secondary::VIRTUAL_INTERRUPTS | secondary::X2APIC | secondary::APIC_ACCESSES;

/// The required controls and those that must be 1, and of the `wanted` ones those that may be.
fn choose(allowed: Allowed, required: Required, wanted: u32) -> Result<u32, Unsupported> {
    for (bit, missing) in required {
        if allowed.may & u64::from(*bit) == 0 {
            return Err(Unsupported(missing));
        }
    }
    let required = required.iter().fold(0, |bits, (bit, _)| bits | bit);
    let value = allowed.ones | u64::from(required) | allowed.may & u64::from(wanted);
    u32::try_from(value).map_err(|_| Unsupported("the CPU's VMX forces a control that does not exist"))
}

impl Controls {
    /// Chooses the controls.
    ///
    /// # Errors
    /// [`Unsupported`] names what is missing.
    pub fn choose(capabilities: &Capabilities) -> Result<Self, Unsupported> {
        check_basic(capabilities)?;
        let windows = primary::INTERRUPT_WINDOW | primary::NMI_WINDOW;
        let primary = choose(capabilities.primary, PRIMARY, 0)? & !windows;
        if primary & UNWANTED != 0 {
            return Err(Unsupported(
                "the CPU's VMX forces exits on CR3, INVLPG, RDTSC, PAUSE or debug registers",
            ));
        }
        let mut features = translation_features(capabilities.ept_vpid)?;
        let pin = choose(capabilities.pin, PIN, pin::TIMER)?;
        let mut wanted = WANTED_SECONDARY;
        if !features.vpid {
            wanted &= !secondary::VPID;
        }
        let delivery = u64::from(VIRTUAL_APIC);
        features.virtual_interrupts = capabilities.secondary.may & delivery == delivery;
        if features.virtual_interrupts {
            wanted |= secondary::APIC_REGISTERS | secondary::VIRTUAL_INTERRUPTS;
        }
        // Which of the two is on goes with the APIC's mode.
        let by_mode = secondary::APIC_ACCESSES | secondary::X2APIC;
        let secondary = choose(capabilities.secondary, SECONDARY, wanted)? & !by_mode;
        features.vpid = secondary & secondary::VPID != 0;
        features.rdtscp = secondary & secondary::RDTSCP != 0;
        features.invpcid = secondary & secondary::INVPCID != 0;
        features.encls = secondary & secondary::ENCLS != 0;
        if pin & pin::TIMER != 0 {
            features.timer_shift = u32::try_from(capabilities.misc & 0x1f).ok();
        }
        let exit = choose(capabilities.exit, EXIT, 0)?;
        let entry = choose(capabilities.entry, ENTRY, 0)? & !entry::LONG_MODE;
        Ok(Self { pin, primary, secondary, exit, entry, features })
    }
}

/// Facts about the structures themselves (A.1).
fn check_basic(capabilities: &Capabilities) -> Result<(), Unsupported> {
    const PAGE: u64 = 4096;
    const WRITE_BACK: u64 = 6;
    if capabilities.basic >> 32 & 0x1fff > PAGE {
        return Err(Unsupported("the CPU's VMCS is larger than a page"));
    }
    if capabilities.basic >> 50 & 0xf != WRITE_BACK {
        return Err(Unsupported("the CPU's VMCS may not lie in cached memory"));
    }
    if capabilities.basic >> 48 & 1 != 0 {
        return Err(Unsupported("the CPU's VMCS may not lie above 4 GiB"));
    }
    Ok(())
}

fn translation_features(ept_vpid: u64) -> Result<Features, Unsupported> {
    let has = |bits: u64| ept_vpid & bits == bits;
    if ept_vpid == 0 {
        return Err(Unsupported("the CPU's VMX has no EPT"));
    }
    if !has(translation::FOUR_LEVELS) {
        return Err(Unsupported("the CPU's EPT has no walk of four levels"));
    }
    if !has(translation::WRITE_BACK) {
        return Err(Unsupported("the CPU's EPT tables may not lie in cached memory"));
    }
    if !has(translation::LARGE_2M) {
        return Err(Unsupported("the CPU's EPT has no pages of 2 MiB"));
    }
    let invept_single = has(translation::INVEPT | translation::INVEPT_SINGLE);
    if !invept_single && !has(translation::INVEPT | translation::INVEPT_ALL) {
        return Err(Unsupported("the CPU's EPT has no INVEPT"));
    }
    let invvpid_single = has(translation::INVVPID | translation::INVVPID_SINGLE);
    Ok(Features {
        gibibyte_pages: has(translation::LARGE_1G),
        vpid: invvpid_single || has(translation::INVVPID | translation::INVVPID_ALL),
        invept_single,
        invvpid_single,
        ..Features::default()
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// IA32_VMX_BASIC to IA32_VMX_TRUE_ENTRY_CTLS, without those that nobody reads (0x48a).
    pub(in crate::vmx) type Captured = [(u32, u64); 16];

    /// As Bochs 2.7 has them for one of its models.
    fn bochs(ept_vpid: u64, secondary: u64) -> Captured {
        [
            (0x480, 0x00d8_1000_0000_002b),
            (0x481, 0x0000_007f_0000_0016),
            (0x482, 0xf7f9_fffe_0401_e172),
            (0x483, 0x007f_ffff_0003_6dff),
            (0x484, 0x0000_ffff_0000_11ff),
            (0x485, 0x0000_0000_6004_01e0),
            (0x486, 0x0000_0000_8000_0021),
            (0x487, 0x0000_0000_ffff_ffff),
            (0x488, 0x0000_0000_0000_2000),
            (0x489, 0x0000_0000_0037_27ff),
            (0x48b, secondary),
            (0x48c, ept_vpid),
            (0x48d, 0x0000_007f_0000_0016),
            (0x48e, 0xf7f9_fffe_0400_6172),
            (0x48f, 0x007f_ffff_0003_6dfb),
            (0x490, 0x0000_ffff_0000_11fb),
        ]
    }

    pub(in crate::vmx) fn skylake() -> Captured {
        bochs(0x0f01_0633_4141, 0x0217_7fff_0000_0000)
    }

    fn sandy_bridge() -> Captured {
        bochs(0x0f01_0611_4141, 0x0000_00ff_0000_0000)
    }

    fn lynnfield() -> Captured {
        bochs(0x0f01_0611_4141, 0x0000_007f_0000_0000)
    }

    pub(in crate::vmx) fn capabilities(captured: &Captured) -> Capabilities {
        Capabilities::read(|number| {
            captured
                .iter()
                .find(|(known, _)| *known == number)
                .unwrap_or_else(|| panic!("MSR {number:#x} was not captured"))
                .1
        })
    }

    fn set(captured: &mut Captured, number: u32, value: u64) {
        captured.iter_mut().find(|(known, _)| *known == number).unwrap().1 = value;
    }

    fn refusal(captured: &Captured) -> &'static str {
        Controls::choose(&capabilities(captured)).unwrap_err().0
    }

    #[test]
    fn a_skylake_gets_everything() {
        let controls = Controls::choose(&capabilities(&skylake())).unwrap();
        assert_eq!(controls.pin, 0x7f);
        assert_eq!(controls.primary, 0xb620_6dfa);
        assert_eq!(controls.secondary, 0x0000_13ea);
        assert_eq!(controls.exit, 0x003f_efff);
        assert_eq!(controls.entry, 0x0000_d1ff);
        let features = controls.features;
        assert!(features.gibibyte_pages && features.vpid && features.invept_single);
        assert!(features.virtual_interrupts);
        assert_eq!(features.timer_shift, Some(0));
    }

    #[test]
    fn what_is_chosen_is_allowed() {
        for captured in [skylake(), sandy_bridge()] {
            let can = capabilities(&captured);
            let controls = Controls::choose(&can).unwrap();
            assert!(can.pin.admits(controls.pin.into()));
            assert!(can.primary.admits(controls.primary.into()));
            assert!(can.secondary.admits(controls.secondary.into()));
            assert!(can.exit.admits(controls.exit.into()));
            assert!(can.entry.admits(controls.entry.into()));
        }
    }

    #[test]
    fn an_older_cpu_falls_back_to_plain_injection() {
        let features = Controls::choose(&capabilities(&sandy_bridge())).unwrap().features;
        assert!(!features.virtual_interrupts);
        assert!(!features.gibibyte_pages);
        assert!(features.vpid && features.rdtscp && !features.invpcid);
    }

    #[test]
    fn without_a_preemption_timer_there_is_none() {
        let mut captured = skylake();
        set(&mut captured, 0x48d, 0x0000_003f_0000_0016);
        assert_eq!(Controls::choose(&capabilities(&captured)).unwrap().features.timer_shift, None);
    }

    #[test]
    fn without_invvpid_nothing_is_tagged() {
        let mut captured = skylake();
        set(&mut captured, 0x48c, 0x0633_4141);
        let controls = Controls::choose(&capabilities(&captured)).unwrap();
        assert!(!controls.features.vpid);
        assert_eq!(controls.secondary & secondary::VPID, 0);
    }

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(refusal(&lynnfield()), "the CPU's VMX has no unrestricted guests");
        assert_eq!(refusal(&bochs(0, 0x0000_0041_0000_0000)), "the CPU's VMX has no EPT");
        let mut captured = skylake();
        set(&mut captured, 0x48e, 0x77f9_fffe_0400_6172);
        assert_eq!(refusal(&captured), "the CPU's VMX has no secondary controls, so no EPT");
        let mut captured = skylake();
        set(&mut captured, 0x48f, 0x006f_ffff_0003_6dfb);
        assert_eq!(refusal(&captured), "the CPU's VMX does not save EFER");
        let mut captured = skylake();
        set(&mut captured, 0x48c, 0x0f01_0633_4101);
        assert_eq!(refusal(&captured), "the CPU's EPT has no walk of four levels");
    }

    #[test]
    fn a_cpu_without_true_controls_forces_cr3_exits() {
        let mut captured = skylake();
        set(&mut captured, 0x480, 0x0058_1000_0000_002b);
        assert_eq!(
            refusal(&captured),
            "the CPU's VMX forces exits on CR3, INVLPG, RDTSC, PAUSE or debug registers"
        );
    }

    #[test]
    fn firmware_may_leave_vmx_on_off_or_open() {
        assert_eq!(feature_control(5), Ok(None));
        assert_eq!(feature_control(0), Ok(Some(5)));
        assert!(feature_control(1).is_err());
    }
}
