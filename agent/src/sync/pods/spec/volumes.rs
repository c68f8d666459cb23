//! Volumes and where containers see them, from their fields.

use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, Pod, Volume as PodVolume};
use minisvc_proto::Quantity;

use crate::runtime::{HostPathType, Mount, Volume, VolumeSource};

/// The pod's volumes; the server has refused those that no node has.
pub fn volumes(pod: &Pod) -> Vec<Volume> {
    let all = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    all.map(|v| Volume { name: v.name.clone(), source: source(v) }).collect()
}

fn source(volume: &PodVolume) -> VolumeSource {
    if let Some(host) = &volume.host_path {
        let kind = match host.type_.as_deref() {
            Some("Directory") => HostPathType::Directory,
            Some("DirectoryOrCreate") => HostPathType::DirectoryOrCreate,
            Some("File") => HostPathType::File,
            Some("FileOrCreate") => HostPathType::FileOrCreate,
            _ => HostPathType::Any,
        };
        return VolumeSource::Host { path: PathBuf::from("/").join(&host.path), kind };
    }
    match &volume.empty_dir {
        Some(empty) if empty.medium.as_deref() == Some("Memory") => {
            let limit = empty.size_limit.as_ref().and_then(|q| q.0.parse().ok()).map(Quantity::value);
            // To tmpfs, as to Kubernetes, nothing is no limit.
            VolumeSource::Memory { limit: limit.filter(|n| *n > 0) }
        }
        _ => VolumeSource::Empty,
    }
}

/// Where a container sees volumes.
pub fn mounts(container: &Container) -> Vec<Mount> {
    let all = container.volume_mounts.iter().flatten();
    all.map(|m| Mount {
        volume: m.name.clone(),
        path: Path::new("/").join(&m.mount_path),
        sub_path: m.sub_path.clone().unwrap_or_default().into(),
        read_only: m.read_only.unwrap_or_default(),
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn volumes_are_what_their_fields_say() {
        let pod: Pod = serde_json::from_value(json!({"spec": {"volumes": [
            {"name": "a", "emptyDir": {}},
            {"name": "b", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
            {"name": "c", "hostPath": {"path": "/etc", "type": "Directory"}},
            {"name": "d", "hostPath": {"path": "/etc/x", "type": ""}},
        ], "containers": [{"name": "c", "volumeMounts": [
            {"name": "a", "mountPath": "/tmp/a", "readOnly": true}, {"name": "b", "mountPath": "b", "subPath": "x/y"},
        ]}]}}))
        .unwrap();
        let sources: Vec<_> = volumes(&pod).into_iter().map(|v| v.source).collect();
        assert_eq!(
            sources,
            [
                VolumeSource::Empty,
                VolumeSource::Memory { limit: Some(1 << 20) },
                VolumeSource::Host { path: "/etc".into(), kind: HostPathType::Directory },
                VolumeSource::Host { path: "/etc/x".into(), kind: HostPathType::Any },
            ]
        );
        let seen = mounts(&pod.spec.as_ref().unwrap().containers[0]);
        let mount = |volume: &str, path: &str, sub_path: &str, read_only| Mount {
            volume: volume.into(),
            path: path.into(),
            sub_path: sub_path.into(),
            read_only,
        };
        assert_eq!(seen, [mount("a", "/tmp/a", "", true), mount("b", "/b", "x/y", false)]);
    }
}
