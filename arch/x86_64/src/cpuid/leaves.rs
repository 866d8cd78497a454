//! One function for each leaf that a guest gets.
#![forbid(unsafe_code)]

use super::{ANY, Change, Facts, Leaf, Maker, Table, bits_for, features as f, xsave};
use crate::control::xcr0;
use bulkhead_vdev::lapic::TIMER_HZ;

/// What leaves are made of.
pub(super) struct Source<'a> {
    pub(super) host: &'a dyn Fn(u32, u32) -> Leaf,
    pub(super) facts: &'a Facts,
    pub(super) maker: Maker,
    pub(super) xcr0: u64,
}

/// The highest basic leaf that says anything, and the highest extended one.
const HIGHEST_BASIC: u32 = 0x1f;
const HIGHEST_EXTENDED: u32 = 0x8000_0021;
/// Leaf 0xb is there whatever the host has: x2APIC is.
const LOWEST_BASIC: u32 = 0xb;
/// More levels of caches than there are.
const CACHES: u32 = 8;

impl Source<'_> {
    pub(super) fn fill(&self, table: &mut Table) {
        let any = |table: &mut Table, leaf, value| table.push(leaf, ANY, Change::None, value);
        let highest = self.host(0, 0).eax.clamp(LOWEST_BASIC, HIGHEST_BASIC);
        any(table, 0, Leaf { eax: highest, ..self.host(0, 0) });
        table.push(1, ANY, Change::Features, self.features());
        if self.maker == Maker::Intel {
            any(table, 2, self.host(2, 0));
            self.caches(table, 4);
        }
        // ARAT: the APIC timer never stops.
        any(table, 6, Leaf { eax: 1 << 2, ..Leaf::default() });
        table.push(7, 0, Change::Structured, self.structured());
        table.push(7, 1, Change::None, self.structured_1());
        table.push(7, 2, Change::None, self.structured_2());
        self.topology(table, 0xb);
        if self.xcr0 != 0 {
            self.xsave(table);
        }
        if highest >= 0x16 {
            any(table, 0x15, self.clock());
            any(table, 0x16, self.frequency());
        }
        if highest >= 0x1f {
            self.topology(table, 0x1f);
        }
        if self.facts.hypervisor_leaf {
            any(table, super::FIRST_HYPERVISOR, signature());
        }
        self.fill_extended(table);
    }

    fn fill_extended(&self, table: &mut Table) {
        let any = |table: &mut Table, leaf, value| table.push(leaf, ANY, Change::None, value);
        let first = self.host(0x8000_0000, 0);
        // Leaf 8000_0008 says how wide addresses are.
        let highest = first.eax.clamp(0x8000_0008, HIGHEST_EXTENDED);
        any(table, 0x8000_0000, Leaf { eax: highest, ..first });
        table.push(0x8000_0001, ANY, Change::Extended, self.extended());
        for leaf in 0x8000_0002..=0x8000_0006 {
            any(table, leaf, self.host(leaf, 0));
        }
        let edx = self.host(0x8000_0007, 0).edx & f::LEAF_80000007_EDX;
        any(table, 0x8000_0007, Leaf { edx, ..Leaf::default() });
        any(table, 0x8000_0008, self.addresses());
        if self.maker == Maker::Intel {
            return;
        }
        for leaf in [0x8000_0019, 0x8000_001a] {
            any(table, leaf, self.host(leaf, 0));
        }
        if self.extended().ecx & 1 << 22 != 0 {
            self.caches(table, 0x8000_001d);
            any(
                table,
                0x8000_001e,
                Leaf { eax: self.facts.vcpu, ebx: self.facts.vcpu & 0xff, ..Leaf::default() },
            );
        }
        let eax = self.host(0x8000_0021, 0).eax;
        let mask = f::LEAF_80000021_EAX | self.speculation(f::LEAF_80000021_EAX_SPECULATION);
        any(table, 0x8000_0021, Leaf { eax: eax & mask, ..Leaf::default() });
    }

    /// The host's leaf; zero above its highest one, where a CPU may give another leaf's.
    fn host(&self, leaf: u32, subleaf: u32) -> Leaf {
        let first = leaf & 0x8000_0000;
        let highest = (self.host)(first, 0).eax;
        if leaf <= highest || leaf == first { (self.host)(leaf, subleaf) } else { Leaf::default() }
    }

    fn avx(&self, bits: u32) -> u32 {
        if self.xcr0 & xcr0::AVX == 0 { bits } else { 0 }
    }

    fn avx512(&self, bits: u32) -> u32 {
        if self.xcr0 & xcr0::AVX512 == 0 { bits } else { 0 }
    }

    fn speculation(&self, bits: u32) -> u32 {
        if self.facts.native.speculation { bits } else { 0 }
    }

    /// Leaf 1.
    fn features(&self) -> Leaf {
        let host = self.host(1, 0);
        let Facts { vcpus, vcpu, hypervisor_leaf, .. } = *self.facts;
        let mut ecx = host.ecx & f::LEAF_1_ECX & !self.avx(f::LEAF_1_ECX_AVX);
        if self.xcr0 == 0 {
            ecx &= !f::XSAVE;
        }
        ecx |= f::X2APIC | f::TSC_DEADLINE;
        ecx |= if hypervisor_leaf { f::HYPERVISOR } else { 0 };
        let edx = host.edx & f::LEAF_1_EDX | f::APIC | if vcpus > 1 { f::HTT } else { 0 };
        let logical = 1 << bits_for(vcpus);
        let ebx = host.ebx & 0xffff | (logical & 0xff) << 16 | (vcpu & 0xff) << 24;
        Leaf { eax: host.eax, ebx, ecx, edx }
    }

    /// Leaf 7, 0.
    fn structured(&self) -> Leaf {
        let host = self.host(7, 0);
        let native = self.facts.native;
        let hide = |wanted: bool, bits: u32| if wanted { 0 } else { bits };
        let ebx = f::LEAF_7_EBX
            & !self.avx(f::LEAF_7_EBX_AVX)
            & !self.avx512(f::LEAF_7_EBX_AVX512)
            & !hide(native.invpcid, f::INVPCID);
        let ecx = f::LEAF_7_ECX
            & !self.avx(f::LEAF_7_ECX_AVX)
            & !self.avx512(f::LEAF_7_ECX_AVX512)
            & !hide(self.xcr0 & xcr0::PKRU != 0, f::PKU)
            & !hide(native.user_wait, f::WAITPKG)
            & !hide(native.tsc_aux, f::RDPID);
        let edx =
            f::LEAF_7_EDX & !self.avx512(f::LEAF_7_EDX_AVX512) | self.speculation(f::LEAF_7_EDX_SPECULATION);
        Leaf { eax: host.eax.min(2), ebx: host.ebx & ebx, ecx: host.ecx & ecx, edx: host.edx & edx }
    }

    /// Leaf 7, 1.
    fn structured_1(&self) -> Leaf {
        let host = if self.host(7, 0).eax >= 1 { self.host(7, 1) } else { Leaf::default() };
        let eax = f::LEAF_7_1_EAX & !self.avx(f::LEAF_7_1_EAX_AVX) & !self.avx512(f::LEAF_7_1_EAX_AVX512);
        let edx = f::LEAF_7_1_EDX & !self.avx(f::LEAF_7_1_EDX_AVX);
        Leaf { eax: host.eax & eax, edx: host.edx & edx, ..Leaf::default() }
    }

    /// Leaf 7, 2.
    fn structured_2(&self) -> Leaf {
        let host = if self.host(7, 0).eax >= 2 { self.host(7, 2) } else { Leaf::default() };
        let edx = f::LEAF_7_2_EDX | self.speculation(f::LEAF_7_2_EDX_SPECULATION);
        Leaf { edx: host.edx & edx, ..Leaf::default() }
    }

    /// Leaf 4, and 8000_001d in the same form: each core has its own first and second level, and all share the others.
    fn caches(&self, table: &mut Table, leaf: u32) {
        let cores = (1 << bits_for(self.facts.vcpus)) - 1;
        for subleaf in 0..CACHES {
            let mut value = self.host(leaf, subleaf);
            // Type 0: no more.
            if value.eax & 0x1f == 0 {
                return;
            }
            let level = value.eax >> 5 & 7;
            let sharing = if level >= 3 { cores } else { 0 };
            value.eax = value.eax & 0x3fff | sharing << 14;
            if leaf == 4 {
                value.eax |= (cores & 0x3f) << 26;
            }
            table.push(leaf, subleaf, Change::None, value);
        }
    }

    /// Leaf 0xb, and 0x1f in the same form: one thread per core, all cores in one package.
    fn topology(&self, table: &mut Table, leaf: u32) {
        const THREADS: u32 = 1 << 8;
        const CORES: u32 = 2 << 8;
        let Facts { vcpus, vcpu, .. } = *self.facts;
        table.push(leaf, 0, Change::Topology, Leaf { eax: 0, ebx: 1, ecx: THREADS, edx: vcpu });
        let cores = Leaf { eax: bits_for(vcpus), ebx: vcpus, ecx: 1 | CORES, edx: vcpu };
        table.push(leaf, 1, Change::Topology, cores);
    }

    /// Leaf 0xd. No component is of supervisors: XSS stays 0.
    fn xsave(&self, table: &mut Table) {
        let [low, high] =
            [self.xcr0 & 0xffff_ffff, self.xcr0 >> 32].map(|half| u32::try_from(half).unwrap_or(0));
        let all = table.xsave.size(self.xcr0);
        table.push(0xd, 0, Change::XsaveSize, Leaf { eax: low, ebx: all, ecx: all, edx: high });
        let saves = if self.facts.native.xsaves { f::LEAF_D_1_EAX_XSAVES } else { 0 };
        let eax = self.host(0xd, 1).eax & (f::LEAF_D_1_EAX | saves);
        table.push(0xd, 1, Change::XsaveCompacted, Leaf { eax, ..Leaf::default() });
        for number in xsave::EXTENDED.into_iter().filter(|number| self.xcr0 >> number & 1 != 0) {
            let Leaf { eax, ebx, ecx, .. } = self.host(0xd, u32::from(number));
            // Bit 1: aligned when compacted. Bit 0 would make it a supervisor's.
            let value = Leaf { eax, ebx, ecx: ecx & 2, edx: 0 };
            table.push(0xd, u32::from(number), Change::None, value);
        }
    }

    /// Leaf 0x15. The crystal is what the local APIC's timer counts (SDM Vol. 3A, 11.5.4), the ratio is the TSC's to it.
    fn clock(&self) -> Leaf {
        let crystal = u32::try_from(TIMER_HZ).ok();
        crystal.zip(ratio(self.facts.tsc_hz, TIMER_HZ)).map_or(Leaf::default(), |(ecx, (ebx, eax))| Leaf {
            eax,
            ebx,
            ecx,
            edx: 0,
        })
    }

    /// Leaf 0x16, in MHz: base, maximum, bus.
    fn frequency(&self) -> Leaf {
        let mhz = u32::try_from(self.facts.tsc_hz / 1_000_000).unwrap_or(0) & 0xffff;
        Leaf { eax: mhz, ebx: mhz, ecx: 100, edx: 0 }
    }

    /// Leaf 8000_0001.
    fn extended(&self) -> Leaf {
        let host = self.host(0x8000_0001, 0);
        let mut ecx = f::LEAF_80000001_ECX & !self.avx(f::LEAF_80000001_ECX_AVX) & host.ecx;
        let mut edx = f::LEAF_80000001_EDX;
        if !self.facts.native.tsc_aux {
            edx &= !f::RDTSCP;
        }
        if self.maker == Maker::Amd {
            edx |= f::LEAF_80000001_EDX_SHARED;
            ecx |= if self.facts.vcpus > 1 { f::CMP_LEGACY } else { 0 };
        }
        Leaf { eax: host.eax, ebx: host.ebx, ecx, edx: host.edx & edx }
    }

    /// Leaf 8000_0008.
    fn addresses(&self) -> Leaf {
        let host = self.host(0x8000_0008, 0);
        let physical = match host.eax & 0xff {
            // Without the leaf: 36 with PSE36 or PAE (SDM Vol. 3A, 4.1.4).
            0 => 36,
            bits => bits,
        };
        let physical = physical.min(u32::from(self.facts.address_bits));
        // 5 levels are never offered, so linear addresses have 48 bits.
        let linear = 48;
        let ebx = f::LEAF_80000008_EBX | self.speculation(f::LEAF_80000008_EBX_SPECULATION);
        let mut leaf = Leaf { eax: physical | linear << 8, ebx: host.ebx & ebx, ..Leaf::default() };
        if self.maker == Maker::Amd {
            leaf.ecx = (self.facts.vcpus.max(1) - 1) & 0xff | bits_for(self.facts.vcpus) << 12;
        }
        leaf
    }
}

/// The fraction nearest to `of / to` that a guest can work with: Linux multiplies its numerator by the crystal's kHz, in 32
/// bits.
fn ratio(of: u64, to: u64) -> Option<(u32, u32)> {
    let largest = u64::from(u32::MAX).checked_div(to / 1000)?;
    let (of, to) = (u128::from(of), u128::from(to));
    let mut best: Option<(u128, u128, u128)> = None;
    for above in 1..=u128::from(largest) {
        let below = (above * to + of / 2).checked_div(of)?.max(1);
        // How far off, times `of * below`.
        let off = (above * to).abs_diff(of * below);
        if best.is_none_or(|(_, least_below, least)| off * least_below < least * below) {
            best = Some((above, below, off));
        }
    }
    let (above, below, _) = best?;
    Some((u32::try_from(above).ok()?, u32::try_from(below).ok()?))
}

/// Leaf 4000_0000: its own number as the highest, and who we are.
fn signature() -> Leaf {
    let [ebx, ecx, edx] = [*b"Bulk", *b"head", *b"\0\0\0\0"].map(u32::from_le_bytes);
    Leaf { eax: super::FIRST_HYPERVISOR, ebx, ecx, edx }
}
