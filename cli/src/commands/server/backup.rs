//! `minisvc server backup`: from the server if it runs, else from its disk.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, anyhow, bail};
use futures::StreamExt;
use minisvc_proto::{
    Revision,
    client::{Client, Kubeconfig},
};
use minisvc_server::{
    backup::{BackupError, Ca, Entry, FORMAT, Header, Writer, check_finished},
    pki::Pki,
    run::{admin_kubeconfig, pki_dir},
    store::{
        Store as _,
        sled_engine::{OpenError, SledStore},
    },
};
use serde::Deserialize;

use crate::output;

/// Writes the file.
pub fn run(file: &Path, data_dir: &Path) -> anyhow::Result<()> {
    check_finished(data_dir)?;
    let store = data_dir.join("store");
    if !store.is_dir() {
        return Err(BackupError::NoStore(data_dir.to_path_buf()).into());
    }
    let pki = pki_dir(data_dir);
    let read =
        |name: &str| fs::read_to_string(pki.join(name)).with_context(|| pki.join(name).display().to_string());
    let ca = Ca { certificate: read("ca.crt")?, key: read("ca.key")? };
    let ca_hash = Pki::load(&pki)?.ca_hash().to_owned();
    let header = |revision, objects| Header {
        minisvc: "backup".into(),
        format: FORMAT,
        version: env!("CARGO_PKG_VERSION").into(),
        created: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        revision,
        objects,
        ca_hash,
    };
    let mut target = Target::open(file)?;
    let written = match SledStore::open(&store) {
        Ok(store) => from_disk(&store, &mut target, header, &ca),
        Err(OpenError::InUse { .. }) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(from_server(&admin_kubeconfig(data_dir), &mut target, header, &ca))
        }
        Err(error) => Err(error.into()),
    };
    let objects = written?;
    target.keep()?;
    if file != Path::new("-") {
        let said = format!(
            "{objects} objects and the CA are in {}; keep it as safe as the server itself\n",
            file.display()
        );
        output::bytes(said.as_bytes())?;
    }
    Ok(())
}

fn from_disk(
    store: &SledStore,
    target: &mut Target,
    header: impl FnOnce(Revision, usize) -> Header,
    ca: &Ca,
) -> anyhow::Result<usize> {
    let (revision, values) = store.load().map_err(|e| anyhow!(e))?;
    let objects: Vec<_> = values.iter().filter(|(key, _)| key.starts_with("/objects/")).collect();
    let mut writer = Writer::begin(target, &header(revision, objects.len()), ca)?;
    for (key, stored) in &objects {
        writer.entry(&Entry::line(key, stored.revision, &stored.value).with_context(|| key.to_string())?)?;
    }
    writer.end()?;
    Ok(objects.len())
}

/// What comes first in the server's answer.
#[derive(Deserialize)]
struct Announced {
    revision: Revision,
    objects: usize,
}

async fn from_server(
    kubeconfig: &Path,
    target: &mut Target,
    header: impl FnOnce(Revision, usize) -> Header,
    ca: &Ca,
) -> anyhow::Result<usize> {
    let client = Client::from_kubeconfig(&Kubeconfig::load(kubeconfig)?)?;
    let mut lines = client.lines("/apis/minisvc.io/v1/backup").await?;
    let first = lines.next().await.ok_or_else(|| anyhow!("the server's answer is empty"))??;
    let announced: Announced = serde_json::from_slice(&first)?;
    let mut writer = Writer::begin(target, &header(announced.revision, announced.objects), ca)?;
    while let Some(line) = lines.next().await {
        writer.entry(&line?)?;
    }
    writer.end().context("the server's answer was cut short")?;
    Ok(announced.objects)
}

/// Where the backup goes: a file that takes its name when it is whole and on disk.
enum Target {
    Out(io::Stdout),
    File { file: BufWriter<File>, temporary: PathBuf, path: PathBuf },
}

impl Target {
    fn open(path: &Path) -> anyhow::Result<Self> {
        if path == Path::new("-") {
            return Ok(Target::Out(io::stdout()));
        }
        let name = path.file_name().with_context(|| format!("{} names no file", path.display()))?;
        let temporary = path.with_file_name(format!(".{}.{}", name.to_string_lossy(), std::process::id()));
        if path.is_dir() {
            bail!("{} is a directory: name a file", path.display());
        }
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary);
        let file = BufWriter::new(file.with_context(|| format!("cannot write {}", path.display()))?);
        Ok(Target::File { file, temporary, path: path.to_path_buf() })
    }

    fn keep(self) -> anyhow::Result<()> {
        let Target::File { ref file, ref temporary, ref path } = self else { return Ok(()) };
        file.get_ref().sync_all().with_context(|| path.display().to_string())?;
        fs::rename(temporary, path).with_context(|| path.display().to_string())?;
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Ok(File::open(parent)?.sync_all()?)
    }
}

/// Nothing half-made stays.
impl Drop for Target {
    fn drop(&mut self) {
        if let Target::File { temporary, .. } = self {
            let _ = fs::remove_file(temporary);
        }
    }
}

impl Write for &mut Target {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Target::Out(out) => out.write(bytes),
            Target::File { file, .. } => file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Target::Out(out) => out.flush(),
            Target::File { file, .. } => file.flush(),
        }
    }
}
