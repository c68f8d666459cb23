//! `minisvc server restore`.

use std::path::Path;

use minisvc_server::backup;

use crate::output;

/// Makes the data directory, and says what came of it.
pub fn run(file: &Path, data_dir: &Path, force: bool) -> anyhow::Result<()> {
    let restored = backup::restore(file, data_dir, force)?;
    let header = restored.header;
    let aside = restored.aside.map(|dir| format!("what was there before is in {}\n", dir.display()));
    let said = format!(
        "restored {} objects of revision {} ({}) into {}; start the server there\n{}\
         nodes that joined after the backup was taken need a new token; what was revoked or removed after it is valid again: do so once \
         more\n",
        header.objects,
        header.revision,
        header.created,
        data_dir.display(),
        aside.unwrap_or_default(),
    );
    Ok(output::bytes(said.as_bytes())?)
}
