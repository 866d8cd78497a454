//! The files that a system names: found, read once each, and looked at before anything boots.

use std::ops::Range;
use std::path::{Path, PathBuf};

use bulkhead::config::{Architecture, FileId, Kernel, KernelFormat};
use bulkhead_firmware_stubs::arm64_image::Header;
use bulkhead_firmware_stubs::placement::Extent;
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

    /// Checks that a file is a kernel for the system's architecture; `span` is where it is named.
    pub(super) fn check_image(&self, file: FileId, span: Range<usize>) -> Result<(), Mistake> {
        let Some(file) = self.get(file) else { return Ok(()) };
        if self.arch != Architecture::Aarch64 {
            // The core's rules refuse the architecture itself.
            return Ok(());
        }
        let what = match Header::parse(&file.content) {
            Err(error) => format!("`{}`: {error}", file.name),
            Ok(header) => match header.extent(virt::RAM, file.content.len() as u64) {
                None => format!("`{}`: its Image header is damaged; use another file", file.name),
                Some(_) => return Ok(()),
            },
        };
        Err(Mistake::told(span, what))
    }

    /// The memory that a running kernel takes; `None` if its file is not known or no address space holds it.
    pub(super) fn extent(&self, kernel: &Kernel) -> Option<Extent> {
        let content = &self.get(kernel.file)?.content;
        let bytes = content.len() as u64;
        match kernel.format {
            KernelFormat::Arm64Image => Header::parse(content).ok()?.extent(virt::RAM, bytes),
            KernelFormat::Flat { load, .. } => Some(Extent { start: Gpa(load), bytes }),
        }
    }

    pub(super) fn length(&self, file: FileId) -> u64 {
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

fn id(index: usize) -> FileId {
    FileId(u32::try_from(index).expect("a system has few files"))
}
