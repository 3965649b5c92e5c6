//! Puts coverage tables together: `countersign-coverage FOLDER [OUTPUT…]` reads the results of the live test of that name in
//! the outputs, which are of one kernel and tier, writes their table into the folder, and then the index of all tables there.

use std::{
    env,
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use countersign_tests::exercise::{
    attempted::Line,
    index::{markdown, replaced, summaries},
    table::Table,
};

fn main() -> ExitCode {
    let mut arguments = env::args_os().skip(1);
    let Some(folder) = arguments.next().map(PathBuf::from) else {
        return said("usage: countersign-coverage FOLDER [OUTPUT…]");
    };
    let outputs: Vec<_> = arguments.collect();
    let joined = if outputs.is_empty() {
        Ok(())
    } else {
        join(&folder, &outputs)
    };
    match joined.and_then(|()| index(&folder)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => said(&error.to_string()),
    }
}

fn said(what: &str) -> ExitCode {
    // Nobody could be told that nobody can be told.
    let _unheard = io::Write::write_all(
        &mut io::stderr(),
        format!("countersign-coverage: {what}\n").as_bytes(),
    );
    ExitCode::FAILURE
}

/// One table of all outputs.
fn join(folder: &Path, outputs: &[OsString]) -> io::Result<()> {
    let mut about = None;
    let mut table = Table::default();
    for path in outputs {
        let odd = |what: &str| io::Error::other(format!("{}: {what}", Path::new(path).display()));
        let text = String::from_utf8_lossy(&fs::read(path)?).into_owned();
        let mut is_whole = false;
        for line in Line::all_of(&text).map_err(|error| odd(&error.to_string()))? {
            match line {
                Line::About(here) => match &about {
                    None => about = Some(here),
                    Some(first) if *first == here => {}
                    Some(_) => return Err(odd("results of another kernel, tier or size")),
                },
                Line::Attempted(attempted) => table.add(attempted),
                Line::Ended => is_whole = true,
            }
        }
        if !is_whole {
            return Err(odd("the results are not whole"));
        }
    }
    let about = about.ok_or_else(|| io::Error::other("no results"))?;
    fs::write(folder.join(about.file_name()), table.markdown(&about))
}

/// The index of all tables.
fn index(folder: &Path) -> io::Result<()> {
    let place = folder.join("README.md");
    let part = markdown(&summaries(folder)?);
    fs::write(&place, replaced(&fs::read_to_string(&place)?, &part)?)
}
