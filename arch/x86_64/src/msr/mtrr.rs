//! Memory types by range, as state that nobody acts on: the second stage settles what memory a guest has (SDM Vol. 3A, 12.11).
#![forbid(unsafe_code)]

/// Pairs of base and mask.
const PAIRS: usize = 8;
const FIXED: usize = 11;

/// IA32_MTRRCAP: so many pairs, fixed ranges, write-combining.
const CAPABILITIES: u64 = PAIRS as u64 | 1 << 8 | 1 << 10;
/// IA32_MTRR_DEF_TYPE: enabled, fixed ranges enabled.
const ENABLED: u64 = 3 << 10;
const DEFAULT_WRITABLE: u64 = ENABLED | 0xff;
/// A mask is valid.
const VALID: u64 = 1 << 11;

const UNCACHEABLE: u8 = 0;
const WRITE_COMBINING: u8 = 1;
const WRITE_THROUGH: u8 = 4;
const WRITE_PROTECTED: u8 = 5;
const WRITE_BACK: u8 = 6;
/// UC-: in the page attribute table only.
const UNCACHED: u8 = 7;

/// Where the addresses of devices begin, up to 4 GiB.
pub(super) const HOLE: u32 = 0xc000_0000;

/// Fixed ranges of 64 KiB, 16 KiB and 4 KiB.
const FIXED_NUMBERS: [u32; FIXED] =
    [0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f];
const CAPABILITIES_NUMBER: u32 = 0xfe;
const FIRST_PAIR: u32 = 0x200;
const DEFAULT_NUMBER: u32 = 0x2ff;

#[derive(Clone, Debug)]
pub(super) struct Mtrrs {
    address_mask: u64,
    default: u64,
    /// Base, mask, base, mask...
    pairs: [u64; 2 * PAIRS],
    fixed: [u64; FIXED],
}

enum Which {
    Capabilities,
    Default,
    Pair(usize),
    Fixed(usize),
}

impl Mtrrs {
    pub(super) fn new(address_bits: u8) -> Self {
        let above = u64::MAX.checked_shl(u32::from(address_bits)).unwrap_or(0);
        let mut mtrrs = Self { address_mask: !above, default: 0, pairs: [0; 2 * PAIRS], fixed: [0; FIXED] };
        mtrrs.reset();
        mtrrs
    }

    /// As firmware leaves it: all write-back, but for the addresses of devices; video memory uncacheable, what is behind
    /// it write-protected.
    pub(super) fn reset(&mut self) {
        let all = |kind: u8| u64::from_le_bytes([kind; 8]);
        self.default = ENABLED | u64::from(WRITE_BACK);
        self.pairs = [0; 2 * PAIRS];
        self.pairs[0] = u64::from(HOLE) | u64::from(UNCACHEABLE);
        self.pairs[1] = !(0x1_0000_0000 - u64::from(HOLE) - 1) & self.address_mask | VALID;
        self.fixed = [all(WRITE_PROTECTED); FIXED];
        self.fixed[..2].fill(all(WRITE_BACK));
        self.fixed[2] = all(UNCACHEABLE);
    }

    pub(super) fn read(&self, number: u32) -> Option<u64> {
        match which(number)? {
            Which::Capabilities => Some(CAPABILITIES),
            Which::Default => Some(self.default),
            Which::Pair(index) => self.pairs.get(index).copied(),
            Which::Fixed(index) => self.fixed.get(index).copied(),
        }
    }

    /// `None`: #GP.
    pub(super) fn write(&mut self, number: u32, value: u64) -> Option<()> {
        let [kind, ..] = value.to_le_bytes();
        let (place, is_legal) = match which(number)? {
            Which::Capabilities => return None,
            Which::Default => (&mut self.default, value & !DEFAULT_WRITABLE == 0 && is_type(kind)),
            Which::Fixed(index) => (self.fixed.get_mut(index)?, value.to_le_bytes().into_iter().all(is_type)),
            Which::Pair(index) => {
                let is_mask = index % 2 == 1;
                let low = if is_mask { VALID } else { 0xff };
                let is_legal = value & !(self.address_mask & !0xfff | low) == 0 && (is_mask || is_type(kind));
                (self.pairs.get_mut(index)?, is_legal)
            }
        };
        if is_legal {
            *place = value;
        }
        is_legal.then_some(())
    }
}

/// Whether each of the eight entries of a page attribute table exists (SDM Vol. 3A, 12.12.2).
pub(super) fn is_pat(value: u64) -> bool {
    value.to_le_bytes().into_iter().all(|kind| kind == UNCACHED || is_type(kind))
}

const fn is_type(kind: u8) -> bool {
    matches!(kind, UNCACHEABLE | WRITE_COMBINING | WRITE_THROUGH | WRITE_PROTECTED | WRITE_BACK)
}

fn which(number: u32) -> Option<Which> {
    match number {
        CAPABILITIES_NUMBER => Some(Which::Capabilities),
        DEFAULT_NUMBER => Some(Which::Default),
        FIRST_PAIR..0x210 => usize::try_from(number - FIRST_PAIR).ok().map(Which::Pair),
        _ => FIXED_NUMBERS.iter().position(|fixed| *fixed == number).map(Which::Fixed),
    }
}
