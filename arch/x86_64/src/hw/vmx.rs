//! The instructions of Intel VMX, and everything in a VMCS that keeps a guest where it belongs.
//!
//! What a guest's state is made of is written by whoever runs it ([`Vmcs::write`]); host state, controls and the addresses of
//! tables are written here alone, from a [`Confinement`].

use super::{
    HostTables, cpuid, host_tables, read_cr0, read_cr3, read_cr4, read_msr, write_cr0, write_cr4, write_msr,
};
use crate::ept::Ept;
use crate::vmx::controls::{
    Allowed, Capabilities, Controls, FEATURE_CONTROL, entry, feature_control, primary, secondary,
};
use crate::vmx::vmcs::{Encoded, Field, Guarded};
use alloc::boxed::Box;
use bulkhead::arch::Unsupported;
use bulkhead::memory::Hpa;
use bulkhead::memory::table::Stage2;
use bulkhead_vdev::Gpa;
use bulkhead_vdev::lapic;
use core::ptr::from_ref;

#[cfg(not(target_os = "none"))]
mod fake;
#[cfg(target_os = "none")]
mod metal;

#[cfg(not(target_os = "none"))]
use fake as cpu;
#[cfg(target_os = "none")]
use metal as cpu;

#[cfg(not(target_os = "none"))]
pub use fake::{Invalidation, script_exit, take_invalidations, written};

/// CPUID leaf 1, ECX: VMX.
const HAS_VMX: u32 = 1 << 5;
/// CR4.VMXE (SDM Vol. 3C, 23.7).
const VMXE: u64 = 1 << 13;
const PAT: u32 = 0x277;
const EFER: u32 = 0xc000_0080;

/// A page for the CPU's own use.
#[repr(C, align(4096))]
pub struct Page([u8; 4096]);

impl Page {
    fn boxed(byte: u8) -> Box<Self> {
        Box::new(Self([byte; 4096]))
    }
}

/// The physical address of an object of ours: our memory is mapped one to one.
fn physical<T>(object: &T) -> u64 {
    from_ref(object).addr() as u64
}

/// What this CPU's VMX can do.
///
/// # Errors
/// [`Unsupported`] if it has none, or firmware has switched it off.
pub fn capabilities() -> Result<Capabilities, Unsupported> {
    if cpuid(1, 0).ecx & HAS_VMX == 0 {
        return Err(Unsupported("the CPU has no VMX"));
    }
    feature_control(read_msr(FEATURE_CONTROL))?;
    Ok(Capabilities::read(read_msr))
}

/// Puts this CPU into VMX operation, for ever. Allocates.
///
/// # Errors
/// [`Unsupported`] if the CPU refuses.
pub fn switch_on(capabilities: &Capabilities) -> Result<(), Unsupported> {
    if let Some(value) = feature_control(read_msr(FEATURE_CONTROL))? {
        // SAFETY: the register is open, and the value permits VMX.
        unsafe { write_msr(FEATURE_CONTROL, value) };
    }
    let fixed = |value: u64, allowed: Allowed| (value | allowed.ones) & allowed.may;
    // SAFETY: protection, paging and 64-bit mode are among the bits that VMX wants set; it forbids none that we use.
    unsafe { write_cr0(fixed(read_cr0(), capabilities.cr0)) };
    // SAFETY: as above.
    unsafe { write_cr4(fixed(read_cr4() | VMXE, capabilities.cr4)) };
    let mut region = Page::boxed(0);
    region.0[..4].copy_from_slice(&capabilities.revision().to_le_bytes());
    // The CPU's own from now on.
    if cpu::vmxon(physical(Box::leak(region))) { Ok(()) } else { Err(Unsupported("the CPU refuses VMXON")) }
}

/// Which MSRs a guest reads and writes without exit (25.6.9).
pub struct MsrBitmap(Box<Page>);

impl Default for MsrBitmap {
    fn default() -> Self {
        Self::new()
    }
}

impl MsrBitmap {
    /// All exit. Allocates.
    #[must_use]
    pub fn new() -> Self {
        Self(Page::boxed(0xff))
    }

    /// Another with the same permissions. Allocates.
    #[must_use]
    pub fn copied(&self) -> Self {
        Self(Box::new(Page(self.0.0)))
    }

    /// What the CPU reads.
    #[must_use]
    pub fn bytes(&self) -> &[u8; 4096] {
        &self.0.0
    }

    /// `msr` is read, or written, without exit. Whatever it holds is the guest's while its vCPU is loaded.
    pub fn permit(&mut self, msr: u32, write: bool) {
        let quarter = match msr {
            0..=0x1fff => 0,
            0xc000_0000..=0xc000_1fff => 1024,
            _ => return,
        };
        let quarter = if write { quarter + 2048 } else { quarter };
        let [low, high, ..] = (msr & 0x1fff).to_le_bytes();
        let bit = usize::from(u16::from_le_bytes([low, high]));
        if let Some(byte) = self.0.0.get_mut(quarter + bit / 8) {
            *byte &= !(1 << (bit % 8));
        }
    }
}

/// What every VMCS on a CPU shares.
pub struct Shared {
    revision: u32,
    ports: [Box<Page>; 2],
}

impl Shared {
    /// Every port exits. Allocates.
    #[must_use]
    pub fn new(capabilities: &Capabilities) -> Self {
        Self { revision: capabilities.revision(), ports: [Page::boxed(0xff), Page::boxed(0xff)] }
    }
}

/// What keeps a guest where it belongs. All of it outlives the VMCS: it is never freed.
pub struct Confinement<'a> {
    /// How it runs.
    pub controls: &'a Controls,
    /// What it reaches.
    pub space: &'a Stage2<Ept>,
    /// The tag of its translations.
    pub vpid: u16,
    /// Its APIC's registers.
    pub apic: &'static lapic::Page,
    /// Where a page stands for its APIC, if one does.
    pub apic_at: Gpa,
    /// Bits of CR0 and CR4 that are not its own.
    pub cr0_mask: u64,
    /// See above.
    pub cr4_mask: u64,
    /// Exceptions that exit.
    pub exceptions: u32,
    /// See [`Shared`].
    pub shared: &'a Shared,
    /// See [`MsrBitmap`].
    pub msrs: &'static MsrBitmap,
    /// What the CPU keeps of our data in buffers is cleared before each entry.
    pub clears_buffers: bool,
}

/// How a guest is entered, for `vmx_entry.S`.
const LAUNCHED: u32 = 1;
const CLEAR_BUFFERS: u32 = 1 << 1;

/// A virtual-machine control structure. It belongs to the CPU that made it.
pub struct Vmcs {
    region: Box<Page>,
    /// [`LAUNCHED`] once it is, and [`CLEAR_BUFFERS`].
    how: u32,
    /// What HOST_RSP holds.
    host_stack: u64,
    /// It is the current one for as long as its vCPU is loaded.
    loaded: bool,
    ept_pointer: u64,
    has_apic_page: bool,
}

impl Vmcs {
    /// A control structure with host state and controls; the guest's state is still to be written. Allocates.
    #[must_use]
    pub fn new(confinement: &Confinement<'_>) -> Self {
        let mut region = Page::boxed(0);
        region.0[..4].copy_from_slice(&confinement.shared.revision.to_le_bytes());
        let apic_page = apic_page(confinement);
        let vmcs = Self {
            region,
            how: if confinement.clears_buffers { CLEAR_BUFFERS } else { 0 },
            host_stack: 0,
            loaded: false,
            ept_pointer: Ept::pointer(confinement.space.root()),
            has_apic_page: apic_page.is_some(),
        };
        cpu::vmclear(physical(&*vmcs.region));
        vmcs.while_current(|| {
            write_host_state(&host_tables());
            vmcs.write_confinement(confinement, apic_page);
        });
        vmcs
    }

    fn write_confinement(&self, confinement: &Confinement<'_>, apic_page: Option<Hpa>) {
        let controls = confinement.controls;
        let set = |field: Guarded, value: u64| cpu::vmwrite(field.encoding(), value);
        set(Guarded::PIN_CONTROLS, controls.pin.into());
        set(Guarded::PRIMARY_CONTROLS, controls.primary.into());
        set(Guarded::SECONDARY_CONTROLS, controls.secondary.into());
        set(Guarded::EXIT_CONTROLS, controls.exit.into());
        set(Guarded::ENTRY_CONTROLS, controls.entry.into());
        set(Guarded::EXCEPTION_BITMAP, confinement.exceptions.into());
        for field in [
            Guarded::PAGE_FAULT_MASK,
            Guarded::PAGE_FAULT_MATCH,
            Guarded::CR3_TARGETS,
            Guarded::EXIT_STORES,
            Guarded::EXIT_LOADS,
            Guarded::ENTRY_LOADS,
        ] {
            set(field, 0);
        }
        set(Guarded::CR0_MASK, confinement.cr0_mask);
        set(Guarded::CR4_MASK, confinement.cr4_mask);
        set(Guarded::EPT_POINTER, self.ept_pointer);
        set(Guarded::IO_BITMAP_A, physical(&*confinement.shared.ports[0]));
        set(Guarded::IO_BITMAP_B, physical(&*confinement.shared.ports[1]));
        set(Guarded::MSR_BITMAP, physical(&*confinement.msrs.0));
        set(Guarded::VIRTUAL_APIC, physical(confinement.apic));
        set(Guarded::LINK_POINTER, u64::MAX);
        if let Some(Hpa(page)) = apic_page {
            set(Guarded::APIC_ACCESS, page);
        }
        if controls.features.vpid {
            set(Guarded::VPID, confinement.vpid.into());
        }
        if controls.features.encls {
            set(Guarded::ENCLS_EXITING, u64::MAX);
        }
    }

    /// Whether guest-physical memory has a page that can stand for the APIC.
    #[must_use]
    pub fn has_apic_page(&self) -> bool {
        self.has_apic_page
    }

    /// Does `call` while this is the CPU's current VMCS.
    #[inline]
    fn while_current<T>(&self, call: impl FnOnce() -> T) -> T {
        if self.loaded {
            return call();
        }
        let before = cpu::vmptrst();
        cpu::vmptrld(physical(&*self.region));
        let result = call();
        if before != u64::MAX {
            cpu::vmptrld(before);
        }
        result
    }

    /// Makes it the current one until [`Vmcs::unload`].
    pub fn load(&mut self) {
        cpu::vmptrld(physical(&*self.region));
        self.loaded = true;
    }

    /// Its vCPU is no longer loaded.
    pub fn unload(&mut self) {
        self.loaded = false;
    }

    /// Whether its vCPU is loaded.
    #[inline]
    #[must_use]
    pub fn is_loaded(&self) -> bool {
        self.loaded
    }

    /// A field's value.
    #[inline(always)]
    #[must_use]
    pub fn read(&self, field: impl Encoded) -> u64 {
        if self.loaded { cpu::vmread(field.encoding()) } else { self.read_unloaded(field.encoding()) }
    }

    /// As [`Vmcs::read`], of a VMCS that is loaded.
    #[inline(always)]
    #[must_use]
    pub fn read_loaded(&self, field: Field) -> u64 {
        debug_assert!(self.loaded, "a VMCS is loaded while its guest runs");
        cpu::vmread(field.encoding())
    }

    /// Changes a field of the guest's.
    #[inline(always)]
    pub fn write(&self, field: Field, value: u64) {
        if self.loaded {
            cpu::vmwrite(field.encoding(), value);
        } else {
            self.write_unloaded(field.encoding(), value);
        }
    }

    #[cold]
    #[inline(never)]
    fn read_unloaded(&self, encoding: u32) -> u64 {
        self.while_current(|| cpu::vmread(encoding))
    }

    #[cold]
    #[inline(never)]
    fn write_unloaded(&self, encoding: u32, value: u64) {
        self.while_current(|| cpu::vmwrite(encoding, value));
    }

    /// The primary controls are those of `controls` and the windows of `windows`.
    #[inline]
    pub fn set_windows(&self, controls: &Controls, windows: u32) {
        let windows = windows & (primary::INTERRUPT_WINDOW | primary::NMI_WINDOW);
        let value = u64::from(controls.primary | windows);
        self.while_current(|| cpu::vmwrite(Guarded::PRIMARY_CONTROLS.encoding(), value));
    }

    /// The guest is in IA-32e mode, or not.
    pub fn set_long_mode(&self, controls: &Controls, long: bool) {
        let value = u64::from(controls.entry | if long { entry::LONG_MODE } else { 0 });
        self.while_current(|| cpu::vmwrite(Guarded::ENTRY_CONTROLS.encoding(), value));
    }

    /// How the APIC is found: by its page, by MSRs, or by neither; and which MSRs exit then.
    pub fn set_apic_access(&self, controls: &Controls, access: ApicAccess, msrs: &'static MsrBitmap) {
        let access = match access {
            ApicAccess::Page if self.has_apic_page => secondary::APIC_ACCESSES,
            ApicAccess::Msrs => secondary::X2APIC,
            ApicAccess::Page | ApicAccess::Neither => 0,
        };
        self.while_current(|| {
            cpu::vmwrite(Guarded::SECONDARY_CONTROLS.encoding(), u64::from(controls.secondary | access));
            cpu::vmwrite(Guarded::MSR_BITMAP.encoding(), physical(&*msrs.0));
        });
    }

    /// Runs the guest until it exits; `false` if the CPU did not even try.
    #[inline]
    pub fn enter(&mut self, registers: &mut super::Registers) -> bool {
        let entered = cpu::enter(registers, &mut self.host_stack, self.how);
        if entered {
            self.how |= LAUNCHED;
        }
        entered
    }

    /// The CPU did not run the guest: whether the VMCS counts as launched then depends on what failed (27.8), so it is launched
    /// anew.
    #[cold]
    pub fn launch_again(&mut self) {
        cpu::vmclear(physical(&*self.region));
        cpu::vmptrld(physical(&*self.region));
        self.how &= !LAUNCHED;
    }

    /// Forgets what this CPU cached of the guest's second stage.
    pub fn forget_space(&self, controls: &Controls) {
        const SINGLE: u64 = 1;
        const ALL: u64 = 2;
        let kind = if controls.features.invept_single { SINGLE } else { ALL };
        cpu::invept(kind, self.ept_pointer);
    }

    /// Forgets what this CPU cached of the guest's own tables. Without tags every entry does.
    pub fn forget_translations(&self, controls: &Controls) {
        const SINGLE: u64 = 1;
        const ALL: u64 = 2;
        if controls.features.vpid {
            let kind = if controls.features.invvpid_single { SINGLE } else { ALL };
            cpu::invvpid(kind, self.read(Guarded::VPID));
        }
    }
}

/// How a guest finds its APIC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ApicAccess {
    /// Every access exits.
    Neither,
    /// By the page that stands for it, if there is one.
    Page,
    /// By MSRs.
    Msrs,
}

/// The host page behind the APIC's guest-physical address.
fn apic_page(confinement: &Confinement<'_>) -> Option<Hpa> {
    cpu::translate(confinement.space.root(), confinement.apic_at)
}

/// What an exit restores.
fn write_host_state(tables: &HostTables) {
    let set = |field: Guarded, value: u64| cpu::vmwrite(field.encoding(), value);
    set(Guarded::HOST_CR0, read_cr0());
    set(Guarded::HOST_CR3, read_cr3());
    set(Guarded::HOST_CR4, read_cr4());
    set(Guarded::HOST_PAT, read_msr(PAT));
    set(Guarded::HOST_EFER, read_msr(EFER));
    set(Guarded::HOST_CS, tables.code.into());
    for field in [Guarded::HOST_SS, Guarded::HOST_DS, Guarded::HOST_ES] {
        set(field, tables.data.into());
    }
    for field in [
        Guarded::HOST_FS,
        Guarded::HOST_GS,
        Guarded::HOST_FS_BASE,
        Guarded::HOST_GS_BASE,
        Guarded::HOST_SYSENTER_CS,
        Guarded::HOST_SYSENTER_ESP,
        Guarded::HOST_SYSENTER_EIP,
    ] {
        set(field, 0);
    }
    set(Guarded::HOST_TR, tables.task.into());
    set(Guarded::HOST_TR_BASE, tables.task_base);
    set(Guarded::HOST_GDTR_BASE, tables.gdt_base);
    set(Guarded::HOST_IDTR_BASE, tables.idt_base);
    set(Guarded::HOST_RIP, cpu::exit_address());
}
