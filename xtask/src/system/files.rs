//! The files that a system names: found, read once each, and looked at before anything boots.

use std::ops::Range;
use std::path::{Path, PathBuf};

use bulkhead::config::check::RAM_RESERVE;
use bulkhead::config::{Architecture, FileId, KernelFormat, Vm};
use bulkhead_firmware_stubs::arm64_image::Header;
use bulkhead_firmware_stubs::pc_boot::{Guest, Kernel as PcKernel};
use bulkhead_firmware_stubs::placement::{Extent, Request};
use bulkhead_firmware_stubs::{multiboot1, pc_placement, placement};
use bulkhead_vdev::{Gpa, virt};
use toml::Spanned;

use super::Resolve;
use crate::problem::Mistake;

/// The files of one system, by [`FileId`].
pub(super) struct Files<'a> {
    folder: &'a Path,
    arch: Architecture,
    resolve: &'a Resolve,
    found: Vec<File>,
}

struct File {
    name: String,
    path: PathBuf,
    content: Vec<u8>,
}

impl<'a> Files<'a> {
    /// What stands for a file that could not be got.
    pub(super) const UNKNOWN: FileId = FileId(u32::MAX);

    pub(super) fn new(folder: &'a Path, arch: Architecture, resolve: &'a Resolve) -> Self {
        Self { folder, arch, resolve, found: Vec::new() }
    }

    /// Finds and reads a file, unless an earlier name led to the same.
    pub(super) fn add(&mut self, name: &Spanned<String>) -> Result<FileId, Mistake> {
        let path = self.find(name)?;
        if let Some(known) = self.found.iter().position(|file| file.path == path) {
            return Ok(id(known));
        }
        let content = std::fs::read(&path).map_err(|error| {
            let what = format!("the file `{}` cannot be read: {error}", name.get_ref());
            Mistake::new(name.span(), what, format_args!("paths start at {}", self.folder.display()))
        })?;
        self.found.push(File { name: name.get_ref().clone(), path, content });
        Ok(id(self.found.len() - 1))
    }

    fn find(&self, name: &Spanned<String>) -> Result<PathBuf, Mistake> {
        let text = name.get_ref();
        if !["debian:", "guest:"].iter().any(|kind| text.starts_with(kind)) {
            return Ok(self.folder.join(text));
        }
        (self.resolve)(text, self.arch).map_err(|error| Mistake {
            span: name.span(),
            what: format!("{error:#}"),
            mend: None,
        })
    }

    /// The format of a kernel for the system's architecture, from its content; `span` is where it is named. Any format
    /// of that architecture for a file that could not be got.
    pub(super) fn recognise(&self, file: FileId, span: Range<usize>) -> Result<KernelFormat, Mistake> {
        let file = self.get(file);
        let found = match self.arch {
            Architecture::Aarch64 => file.map_or(Ok(KernelFormat::Arm64Image), arm64_format),
            Architecture::X86_64 => file.map_or(Ok(KernelFormat::BzImage), pc_format),
        };
        found.map_err(|what| Mistake::told(span, what))
    }

    /// Why the running kernel of `vm`, its RAM disk and what describes the machine find no place in its RAM: the kernel's
    /// header has a say in it, which the core's rules do not see.
    pub(super) fn misfit(&self, vm: &Vm) -> Option<String> {
        match self.arch {
            Architecture::Aarch64 => self.arm_misfit(vm).map(|error| error.to_string()),
            Architecture::X86_64 => self.pc_misfit(vm).map(|error| error.to_string()),
        }
    }

    fn arm_misfit(&self, vm: &Vm) -> Option<placement::DoesNotFit> {
        let content = &self.get(vm.kernel.file)?.content;
        let bytes = content.len() as u64;
        let kernel = match vm.kernel.format {
            KernelFormat::Flat { load, .. } => Extent { start: Gpa(load), bytes },
            _ => Header::parse(content).ok()?.extent(virt::RAM, bytes)?,
        };
        let request = Request {
            ram: Extent { start: virt::RAM, bytes: vm.ram_bytes },
            kernel,
            initrd_bytes: vm.kernel.initrd.map(|id| self.length(id)),
            device_tree_bytes: RAM_RESERVE,
        };
        request.place().err()
    }

    fn pc_misfit(&self, vm: &Vm) -> Option<pc_placement::DoesNotFit> {
        let content = &self.get(vm.kernel.file)?.content;
        let kernel = match vm.kernel.format {
            KernelFormat::Flat { load, entry } => {
                PcKernel::Multiboot(multiboot1::Kernel::flat(content.len(), Gpa(load), Gpa(entry)))
            }
            _ => PcKernel::recognise(content).ok()?,
        };
        let guest = Guest {
            ram_bytes: vm.ram_bytes,
            vcpus: vm.vcpus,
            command_line: &vm.kernel.cmdline,
            initrd_bytes: vm.kernel.initrd.map(|id| self.length(id)),
            rng_seed: Some([0; 32]),
        };
        kernel.prepare(&guest).err()
    }

    /// Where a flat kernel is loaded as a rule, for a hint.
    pub(super) fn usual_load(&self) -> &'static str {
        match self.arch {
            Architecture::Aarch64 => "0x4000_0000",
            Architecture::X86_64 => "0x10_0000",
        }
    }

    fn length(&self, file: FileId) -> u64 {
        self.get(file).map_or(0, |file| file.content.len() as u64)
    }

    pub(super) fn lengths(&self) -> Vec<u64> {
        self.found.iter().map(|file| file.content.len() as u64).collect()
    }

    pub(super) fn into_content(self) -> Vec<(String, Vec<u8>)> {
        self.found.into_iter().map(|file| (file.name, file.content)).collect()
    }

    fn get(&self, file: FileId) -> Option<&File> {
        self.found.get(usize::try_from(file.0).ok()?)
    }
}

/// The format of an Arm kernel, or why it is none.
fn arm64_format(file: &File) -> Result<KernelFormat, String> {
    let header = Header::parse(&file.content).map_err(|error| format!("`{}`: {error}", file.name))?;
    match header.extent(virt::RAM, file.content.len() as u64) {
        None => Err(format!("`{}`: its Image header is damaged; use another file", file.name)),
        Some(_) => Ok(KernelFormat::Arm64Image),
    }
}

/// The format of a PC's kernel, or why it is none.
fn pc_format(file: &File) -> Result<KernelFormat, String> {
    match PcKernel::recognise(&file.content) {
        Ok(PcKernel::BzImage(_)) => Ok(KernelFormat::BzImage),
        Ok(PcKernel::Pvh(_)) => Ok(KernelFormat::Pvh),
        Ok(PcKernel::Multiboot(_)) => Ok(KernelFormat::Multiboot),
        Err(error) => Err(format!("`{}`: {error}", file.name)),
    }
}

fn id(index: usize) -> FileId {
    FileId(u32::try_from(index).expect("a system has few files"))
}
