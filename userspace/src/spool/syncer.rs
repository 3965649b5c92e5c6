//! The thread that makes closed segments durable.

use std::fs::File;
use std::io;
use std::sync::mpsc;
use std::thread::JoinHandle;

/// Makes closed segments durable without holding up the capture.
#[derive(Debug)]
pub(super) struct Syncer {
    files: Option<mpsc::Sender<File>>,
    thread: Option<JoinHandle<Option<io::Error>>>,
}

impl Syncer {
    pub(super) fn start() -> Self {
        let (files, incoming) = mpsc::channel::<File>();
        let thread = std::thread::Builder::new()
            .name("spool-sync".into())
            .spawn(move || {
                let mut failed = None;
                for file in incoming {
                    if let Err(error) = file.sync_all() {
                        tracing::warn!(%error, "a spool segment could not be made durable");
                        failed = Some(error);
                    }
                }
                failed
            });
        // Without the thread, files are synced where they are closed.
        Self {
            files: Some(files),
            thread: thread.ok(),
        }
    }

    pub(super) fn sync(&mut self, file: File) {
        let unsent = match (&self.files, &self.thread) {
            (Some(files), Some(_)) => files.send(file).err().map(|error| error.0),
            _ => Some(file),
        };
        if let Some(file) = unsent
            && let Err(error) = file.sync_all()
        {
            tracing::warn!(%error, "a spool segment could not be made durable");
        }
    }

    pub(super) fn finish(&mut self) -> Option<io::Error> {
        self.files = None;
        self.thread
            .take()
            .and_then(|thread| thread.join().ok().flatten())
    }
}
