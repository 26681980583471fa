//! A machine whose disk is made of memory, for tests: its power can be cut at any call, and any call can fail.
//!
//! What a process sees of a file is one thing, what is on disk another, and between them stand the changes that nobody
//! has synced. A power cut keeps some of these: mostly the first ones and a piece of the next, sometimes any, since a
//! kernel writes pages in no order; a piece that is missing reads as zeros where the file has grown past it. Names are
//! kept in the order of their changes, as file systems with a journal keep them, and a file without a name is gone,
//! synced or not. A sync that fails forgets what it was to bring to disk, as Linux does: the next one succeeds and
//! brings nothing of it.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::disk::{Disk, DiskFile};
use super::record::{Kind, Record};
use super::segment::{self, SegmentStream};

/// How a call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// With an error of the device.
    Broken,
    /// With an error that there is no room.
    Full,
    /// A read or a write does half of what it was asked to, and says so. Other calls succeed.
    Half,
    /// A write does half, and the call after it finds no room. Other calls succeed.
    HalfThenFull,
}

impl Fault {
    pub const ALL: [Self; 4] = [Self::Broken, Self::Full, Self::Half, Self::HalfThenFull];
}

/// The machine, as its owner has it.
pub(super) struct Machine {
    state: Arc<Mutex<State>>,
}

struct State {
    dice: StdRng,
    /// Handles of earlier processes are dead.
    process: u64,
    calls: u64,
    file_syncs: u64,
    cut_at: Option<u64>,
    is_off: bool,
    fault: Option<(u64, Fault)>,
    /// Bytes that can be written yet.
    room: Option<usize>,
    files: BTreeMap<u64, Contents>,
    names: BTreeMap<PathBuf, u64>,
    names_on_disk: BTreeMap<PathBuf, u64>,
    name_changes: Vec<NameChange>,
}

#[derive(Default)]
struct Contents {
    seen: Vec<u8>,
    on_disk: Vec<u8>,
    changes: Vec<Change>,
}

enum Change {
    Write(u64, Vec<u8>),
    Length(u64),
}

enum NameChange {
    Add(PathBuf, u64),
    Remove(PathBuf),
}

/// What becomes of a call.
enum Turn {
    Succeeds,
    Halves,
    Fails(io::Error),
    /// The power goes while it runs.
    IsCut,
}

impl Machine {
    pub fn new(seed: u64) -> Self {
        let state = State {
            dice: StdRng::seed_from_u64(seed),
            process: 0,
            calls: 0,
            file_syncs: 0,
            cut_at: None,
            is_off: false,
            fault: None,
            room: None,
            files: BTreeMap::new(),
            names: BTreeMap::new(),
            names_on_disk: BTreeMap::new(),
            name_changes: Vec::new(),
        };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// The disk as a new process has it. The one before it was killed, if it still ran: what it had open works no more,
    /// and what it had written is there.
    pub fn start_process(&self) -> Arc<dyn Disk> {
        let mut state = self.state.lock();
        state.process += 1;
        Arc::new(SimulatedDisk { state: Arc::clone(&self.state), process: Some(state.process) })
    }

    /// The process is no more: its handles are dead.
    pub fn kill_process(&self) {
        self.state.lock().process += 1;
    }

    /// The disk as an observer sees it: outside of all counts, faults and cuts.
    pub fn observe(&self) -> SimulatedDisk {
        SimulatedDisk { state: Arc::clone(&self.state), process: None }
    }

    /// The call after so many others is the one during which the power goes.
    pub fn cut_power_after(&self, calls: u64) {
        let mut state = self.state.lock();
        state.cut_at = Some(state.calls + calls);
    }

    /// The power is off: every call fails.
    pub fn is_off(&self) -> bool {
        self.state.lock().is_off
    }

    /// Cuts the power, if it is not off yet, and starts the machine again.
    pub fn cut_power(&self) {
        self.state.lock().cut_power();
    }

    /// How many calls there were.
    pub fn calls(&self) -> u64 {
        self.state.lock().calls
    }

    /// How many of these were to sync a file.
    pub fn file_syncs(&self) -> u64 {
        self.state.lock().file_syncs
    }

    /// The call of this number, from 0, is to fail.
    pub fn fail_call(&self, call: u64, fault: Fault) {
        self.state.lock().fault = Some((call, fault));
    }

    /// Only so many bytes can be written yet.
    pub fn set_room(&self, bytes: Option<usize>) {
        self.state.lock().room = bytes;
    }
}

impl State {
    /// A call comes from a process. Fails where that is dead.
    fn call(&mut self, process: Option<u64>) -> io::Result<Turn> {
        let Some(process) = process else { return Ok(Turn::Succeeds) };
        if self.is_off || process != self.process {
            return Err(off());
        }
        let call = self.calls;
        self.calls += 1;
        if self.cut_at == Some(call) {
            self.is_off = true;
            return Ok(Turn::IsCut);
        }
        match self.fault {
            Some((at, Fault::Broken)) if at == call => Ok(Turn::Fails(io::Error::other("the device is broken"))),
            Some((at, Fault::Full)) if at == call => Ok(Turn::Fails(io::ErrorKind::StorageFull.into())),
            Some((at, Fault::Half | Fault::HalfThenFull)) if at == call => Ok(Turn::Halves),
            _ => Ok(Turn::Succeeds),
        }
    }

    /// For a call that is done or not done: whether it is, and what its caller is told.
    fn all_or_nothing(&mut self, process: Option<u64>) -> io::Result<(bool, io::Result<()>)> {
        Ok(match self.call(process)? {
            Turn::Succeeds | Turn::Halves => (true, Ok(())),
            Turn::Fails(error) => (false, Err(error)),
            Turn::IsCut => (self.dice.random_bool(0.5), Err(off())),
        })
    }

    fn contents(&mut self, file: u64) -> &mut Contents {
        self.files.get_mut(&file).unwrap()
    }

    fn file_named(&self, path: &Path) -> io::Result<u64> {
        self.names.get(path).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn cut_power(&mut self) {
        let dice = &mut self.dice;
        for contents in self.files.values_mut() {
            let changes = std::mem::take(&mut contents.changes);
            let in_order = dice.random_bool(0.7);
            let survivors = dice.random_range(0..=changes.len());
            for (index, change) in changes.into_iter().enumerate() {
                let survives = if in_order { index < survivors } else { dice.random_bool(0.5) };
                if survives {
                    change.apply(&mut contents.on_disk);
                } else if let Change::Write(offset, mut bytes) = change
                    && in_order
                    && index == survivors
                {
                    let torn = dice.random_range(0..=bytes.len());
                    if dice.random_bool(0.3) {
                        bytes[torn..].fill(0);
                    } else {
                        bytes.truncate(torn);
                    }
                    Change::Write(offset, bytes).apply(&mut contents.on_disk);
                }
            }
            contents.seen.clone_from(&contents.on_disk);
        }
        let survivors = dice.random_range(0..=self.name_changes.len());
        for change in std::mem::take(&mut self.name_changes).into_iter().take(survivors) {
            change.apply(&mut self.names_on_disk);
        }
        self.names.clone_from(&self.names_on_disk);
        let named: Vec<u64> = self.names.values().copied().collect();
        self.files.retain(|file, _| named.contains(file));
        self.is_off = false;
        self.cut_at = None;
        self.process += 1;
    }
}

impl Contents {
    fn change(&mut self, change: Change) {
        change.apply(&mut self.seen);
        self.changes.push(change);
    }
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Length(length) => bytes.resize(*length as usize, 0),
            Self::Write(offset, written) => {
                let (start, end) = (*offset as usize, *offset as usize + written.len());
                if bytes.len() < end {
                    bytes.resize(end, 0);
                }
                bytes[start..end].copy_from_slice(written);
            }
        }
    }
}

impl NameChange {
    fn apply(self, names: &mut BTreeMap<PathBuf, u64>) {
        match self {
            Self::Add(path, file) => names.insert(path, file),
            Self::Remove(path) => names.remove(&path),
        };
    }
}

fn off() -> io::Error {
    io::Error::other("the power is off")
}

/// The disk, as somebody sees it.
pub(super) struct SimulatedDisk {
    state: Arc<Mutex<State>>,
    process: Option<u64>,
}

struct SimulatedFile {
    state: Arc<Mutex<State>>,
    process: Option<u64>,
    file: u64,
}

impl SimulatedDisk {
    fn file(&self, file: u64) -> Arc<dyn DiskFile> {
        Arc::new(SimulatedFile { state: Arc::clone(&self.state), process: self.process, file })
    }
}

impl Disk for SimulatedDisk {
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut state = self.state.lock();
        state.all_or_nothing(self.process)?.1?;
        let names = state.names.keys().filter(|path| path.parent() == Some(dir));
        Ok(names.map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect())
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.state.lock();
        let (is_done, told) = state.all_or_nothing(self.process)?;
        if state.names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let file = state.files.last_key_value().map_or(0, |(last, _)| last + 1);
        if is_done {
            state.files.insert(file, Contents::default());
            state.names.insert(path.to_owned(), file);
            state.name_changes.push(NameChange::Add(path.to_owned(), file));
        }
        told.map(|()| self.file(file))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.state.lock();
        state.all_or_nothing(self.process)?.1?;
        Ok(self.file(state.file_named(path)?))
    }

    fn open_to_read(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.open(path)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        let (is_done, told) = state.all_or_nothing(self.process)?;
        state.file_named(path)?;
        if is_done {
            state.names.remove(path);
            state.name_changes.push(NameChange::Remove(path.to_owned()));
        }
        told
    }

    fn sync_folder(&self, _dir: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        let (is_done, told) = state.all_or_nothing(self.process)?;
        if is_done {
            state.names_on_disk = state.names.clone();
            state.name_changes.clear();
        }
        told
    }
}

impl DiskFile for SimulatedFile {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let mut state = self.state.lock();
        let most = state.room.unwrap_or(bytes.len()).min(bytes.len());
        let (length, told) = match state.call(self.process)? {
            Turn::Succeeds if most == 0 => return Err(io::ErrorKind::StorageFull.into()),
            Turn::Succeeds => (most, Ok(most)),
            Turn::Halves => {
                if let Some((call, Fault::HalfThenFull)) = state.fault {
                    state.fault = Some((call + 1, Fault::Full));
                }
                let half = most.div_ceil(2);
                (half, Ok(half))
            }
            Turn::Fails(error) => return Err(error),
            Turn::IsCut => (state.dice.random_range(0..=most), Err(off())),
        };
        state.room = state.room.map(|room| room - length);
        state.contents(self.file).change(Change::Write(offset, bytes[..length].to_vec()));
        told
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut state = self.state.lock();
        let turn = state.call(self.process)?;
        let seen = &state.contents(self.file).seen;
        let rest = seen.get(offset as usize..).unwrap_or_default();
        let most = rest.len().min(bytes.len());
        let length = match turn {
            Turn::Succeeds => most,
            Turn::Halves => most.div_ceil(2),
            Turn::Fails(error) => return Err(error),
            Turn::IsCut => return Err(off()),
        };
        bytes[..length].copy_from_slice(&rest[..length]);
        Ok(length)
    }

    fn set_length(&self, bytes: u64) -> io::Result<()> {
        let mut state = self.state.lock();
        let (is_done, told) = state.all_or_nothing(self.process)?;
        if is_done {
            let contents = state.contents(self.file);
            let given_back = contents.seen.len().saturating_sub(bytes as usize);
            contents.change(Change::Length(bytes));
            state.room = state.room.map(|room| room + given_back);
        }
        told
    }

    fn length(&self) -> io::Result<u64> {
        let mut state = self.state.lock();
        state.all_or_nothing(self.process)?.1?;
        Ok(state.contents(self.file).seen.len() as u64)
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.state.lock();
        state.file_syncs += 1;
        let (is_done, told) = state.all_or_nothing(self.process)?;
        let is_off = state.is_off;
        let contents = state.contents(self.file);
        let changes = std::mem::take(&mut contents.changes);
        if is_done {
            changes.iter().for_each(|change| change.apply(&mut contents.on_disk));
        } else if is_off {
            contents.changes = changes;
        }
        told
    }
}

/// Every record in a folder, in the order of the files.
pub(super) fn records_in(disk: &dyn Disk, dir: &Path) -> Vec<Record> {
    let mut records = Vec::new();
    for first_seq in segment::list_on(disk, dir).unwrap() {
        let mut stream = SegmentStream::open_on(disk, dir, first_seq).unwrap();
        while let Some(head) = stream.next(u64::MAX, false).unwrap() {
            records.push(Record {
                kind: Kind::from_code(head.code).unwrap(),
                seq: head.seq,
                time_us: head.time_us,
                event_id: head.event_id,
                payload: stream.payload(&head).to_vec(),
            });
        }
    }
    records
}
