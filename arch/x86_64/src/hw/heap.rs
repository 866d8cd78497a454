//! The heap of boot time: a fixed part of the image. When the last CPU is up it is sealed, and whoever would still allocate
//! gets nothing.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::ptr::{NonNull, null_mut};
use core::sync::atomic::{AtomicBool, Ordering};
use linked_list_allocator::Heap;
use spin::Mutex;

/// The size of the heap.
pub const HEAP_BYTES: usize = 512 * 1024;

#[repr(align(4096))]
struct Memory(UnsafeCell<[MaybeUninit<u8>; HEAP_BYTES]>);

// SAFETY: the heap alone reaches the memory, under its lock.
unsafe impl Sync for Memory {}

struct BootHeap {
    heap: Mutex<Option<Heap>>,
    sealed: AtomicBool,
}

#[global_allocator]
static HEAP: BootHeap = BootHeap { heap: Mutex::new(None), sealed: AtomicBool::new(false) };

/// From now on nothing is allocated.
pub fn seal() {
    HEAP.sealed.store(true, Ordering::SeqCst);
}

/// Bytes that are still free.
pub fn free_bytes() -> usize {
    HEAP.heap.lock().as_ref().map_or(HEAP_BYTES, Heap::free)
}

fn new_heap() -> Heap {
    static MEMORY: Memory = Memory(UnsafeCell::new([MaybeUninit::uninit(); HEAP_BYTES]));
    let start = MEMORY.0.get().cast::<u8>();
    // SAFETY: the static is named here only, and this runs once, under the lock: the heap owns it.
    unsafe { Heap::new(start, HEAP_BYTES) }
}

// SAFETY: `Heap` gives out disjoint, aligned parts of memory that nothing else uses; the lock keeps CPUs apart.
unsafe impl GlobalAlloc for BootHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if self.sealed.load(Ordering::Relaxed) {
            return null_mut();
        }
        let mut heap = self.heap.lock();
        let heap = heap.get_or_insert_with(new_heap);
        heap.allocate_first_fit(layout).map_or(null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        let mut heap = self.heap.lock();
        if let (Some(heap), Some(pointer)) = (heap.as_mut(), NonNull::new(pointer)) {
            // SAFETY: the caller got the pointer from `alloc` with this layout.
            unsafe { heap.deallocate(pointer, layout) };
        }
    }
}
