//! What `up` leaves behind for the next commands: the configuration, and lines to paste.

use std::path::Path;

/// What is known of the demonstration's service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// The service's nodePort.
    pub node_port: u16,
}

/// What stands at the place of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found<'a> {
    Nothing,
    /// The configuration of a server, by its URL.
    Server(&'a str),
    /// Something else.
    Unreadable,
}

/// Whether `up` may write its configuration where every command looks for one. Somebody's configuration of another machine stays,
/// and so does that of the default cluster for a cluster of another name.
pub fn may_write(name: &str, own_url: &str, found: Found) -> bool {
    match found {
        Found::Nothing => true,
        Found::Unreadable => false,
        Found::Server(url) => url == own_url || (url.starts_with("https://127.0.0.1:") && name == "default"),
    }
}

/// Lines to paste. `binary` is this program's path; `config` is given where the commands would not find it themselves.
pub struct Hints<'a> {
    pub binary: &'a Path,
    pub config: Option<&'a Path>,
    /// Name of the cluster.
    pub name: &'a str,
    /// Name of a node, and the address of another one.
    pub nodes: (&'a str, std::net::Ipv4Addr),
    /// The service, if it is there already; else the nodePort to ask for.
    pub service: Result<&'a Known, u16>,
}

impl Hints<'_> {
    /// One command a line.
    pub fn lines(&self) -> Vec<String> {
        let mut me = quoted(self.binary);
        let down = format!(
            "{me} down{}",
            if self.name == "default" { String::new() } else { format!(" --name {}", self.name) }
        );
        if let Some(config) = self.config {
            me = format!("{me} --config {}", quoted(config));
        }
        let (from, to) = self.nodes;
        let mut lines = Vec::new();
        let port = match self.service {
            Ok(known) => known.node_port,
            Err(free) => {
                lines.push(format!("{me} create deployment hello --replicas 4 -- minisvc echo --port 8080"));
                lines.push(format!("{me} create service nodeport hello --tcp=80:8080 --node-port={free}"));
                free
            }
        };
        lines.push(format!("curl http://127.0.0.1:{port}/"));
        lines.push(format!("{me} node exec {from} -- curl http://{to}:{port}/"));
        lines.push(format!("{me} exec deployment/hello -- curl http://hello/"));
        lines.push(format!("{me} get nodes,pods,services,endpointslices -o wide"));
        lines.push(down);
        lines
    }
}

/// A nodePort to ask for: one of the band that the server does not choose from, which no service has and this machine has free.
pub fn free_node_port(allocated: &[u16], is_free_here: impl Fn(u16) -> bool) -> Option<u16> {
    let usual = 30_080..=30_085;
    usual.chain(30_000..30_080).find(|port| !allocated.contains(port) && is_free_here(*port))
}

/// A path as a shell takes it for one word.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:,@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_of_another_cluster_stays() {
        let own = "https://127.0.0.1:7443";
        for (name, found, expected) in [
            ("default", Found::Nothing, true),
            ("default", Found::Server(own), true),
            ("default", Found::Server("https://127.0.0.1:9"), true),
            ("default", Found::Server("https://10.0.0.1:7443"), false),
            ("default", Found::Unreadable, false),
            ("other", Found::Server(own), true),
            ("other", Found::Server("https://127.0.0.1:9"), false),
            ("other", Found::Nothing, true),
        ] {
            assert_eq!(may_write(name, own, found), expected, "{name} {found:?}");
        }
    }

    #[test]
    fn a_free_port_is_nobodys() {
        assert_eq!(free_node_port(&[], |_| true), Some(30_080));
        assert_eq!(free_node_port(&[30_080], |p| p != 30_081), Some(30_082));
        assert_eq!(free_node_port(&[], |p| p < 30_001), Some(30_000));
        assert_eq!(free_node_port(&[], |_| false), None);
    }

    #[test]
    fn every_line_can_be_pasted() {
        let known = Known { node_port: 31234 };
        let mut hints = Hints {
            binary: Path::new("/opt/my tools/minisvc"),
            config: None,
            name: "default",
            nodes: ("node-2", "192.168.77.13".parse().unwrap()),
            service: Err(30080),
        };
        assert_eq!(
            hints.lines(),
            [
                "'/opt/my tools/minisvc' create deployment hello --replicas 4 -- minisvc echo --port 8080",
                "'/opt/my tools/minisvc' create service nodeport hello --tcp=80:8080 --node-port=30080",
                "curl http://127.0.0.1:30080/",
                "'/opt/my tools/minisvc' node exec node-2 -- curl http://192.168.77.13:30080/",
                "'/opt/my tools/minisvc' exec deployment/hello -- curl http://hello/",
                "'/opt/my tools/minisvc' get nodes,pods,services,endpointslices -o wide",
                "'/opt/my tools/minisvc' down",
            ]
        );
        hints.binary = Path::new("/usr/bin/minisvc");
        hints.config = Some(Path::new("/run/minisvc/two/admin.kubeconfig"));
        hints.name = "two";
        hints.service = Ok(&known);
        assert_eq!(
            hints.lines(),
            [
                "curl http://127.0.0.1:31234/",
                "/usr/bin/minisvc --config /run/minisvc/two/admin.kubeconfig node exec node-2 -- curl http://192.168.77.13:31234/",
                "/usr/bin/minisvc --config /run/minisvc/two/admin.kubeconfig exec deployment/hello -- curl http://hello/",
                "/usr/bin/minisvc --config /run/minisvc/two/admin.kubeconfig get nodes,pods,services,endpointslices -o wide",
                "/usr/bin/minisvc down --name two",
            ]
        );
    }
}
