//! Answers as a table and as ways through the cluster. Values in, text out.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde_json::Value;

/// A node that is Ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub name: String,
    pub ip: Ipv4Addr,
}

/// What the answers are explained with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    pub node_port: u16,
    pub cluster_ip: Ipv4Addr,
    pub port: u16,
    pub target: u16,
    pub nodes: Vec<Node>,
    /// One of the pods.
    pub pod: Option<String>,
}

/// What a question came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub from: String,
    pub asked: String,
    pub said: Result<Said, String>,
}

/// What `minisvc echo` says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    pub pod: String,
    pub node: String,
    pub pod_ip: String,
    /// Address and port from which it was asked.
    pub client: String,
}

impl Answer {
    /// From the body of the answer.
    pub fn of(from: &str, asked: &str, body: anyhow::Result<String>) -> Answer {
        let said = body.map_err(|e| format!("{e:#}")).and_then(|body| read(&body));
        Answer { from: from.to_owned(), asked: asked.to_owned(), said }
    }
}

fn read(body: &str) -> Result<Said, String> {
    let value: Value =
        serde_json::from_str(body).map_err(|_| format!("an answer that is not ours: {}", body.trim()))?;
    let text = |field: &str| value[field].as_str().unwrap_or("?").to_owned();
    Ok(Said { pod: text("pod"), node: text("node"), pod_ip: text("podIP"), client: text("client") })
}

/// Lines with a head.
pub fn table(answers: &[Answer]) -> Vec<String> {
    let mut rows = vec![["FROM", "ASKED", "ANSWERED BY", "ON", "AS SEEN THERE"].map(str::to_owned)];
    for answer in answers {
        let (pod, node, client) = match &answer.said {
            Ok(said) => (said.pod.clone(), said.node.clone(), said.client.clone()),
            Err(e) => (format!("nobody: {e}"), String::new(), String::new()),
        };
        rows.push([answer.from.clone(), answer.asked.clone(), pod, node, client]);
    }
    let silent = |row: &[String; 5]| row[3].is_empty();
    let width = |i: usize| {
        rows.iter().filter(|r| i < 2 || !silent(r)).map(|r| r[i].chars().count()).max().unwrap_or(0)
    };
    let widths: [usize; 5] = std::array::from_fn(width);
    rows.iter()
        .map(|row| {
            let cells = row.iter().zip(widths).map(|(c, w)| format!("{c:<w$}   "));
            cells.collect::<String>().trim_end().to_owned()
        })
        .collect()
}

/// `you -> 127.0.0.1:30080 -> node-1 192.168.77.11:30080 -> ClusterIP 10.96.0.7:80 -> pod hello-1 10.244.1.4:8080 on node-2`
pub fn way(answer: &Answer, facts: &Facts) -> String {
    let Answer { from, asked, said } = answer;
    let said = match said {
        Ok(said) => said,
        Err(e) => return format!("{from} -> {asked} -> nothing: {e}"),
    };
    let mut steps = vec![from.clone()];
    let named = |ip: IpAddr| {
        facts.nodes.iter().find(|n| n.ip == ip).map(|n| format!("{} {ip}:{}", n.name, facts.node_port))
    };
    match asked.parse::<SocketAddr>() {
        Ok(address) if address.ip().is_loopback() => {
            steps.push(asked.clone());
            // A node that sends the client on to another node hides it behind its own address, and so tells which one it was;
            // one whose own pod answers keeps the client's address.
            let hidden = said.client.parse::<SocketAddr>().ok().and_then(|c| named(c.ip()));
            let own = || facts.nodes.iter().find(|n| n.name == said.node).and_then(|n| named(n.ip.into()));
            steps.push(hidden.or_else(own).unwrap_or_else(|| format!("a node, port {}", facts.node_port)));
        }
        Ok(address) => steps.push(named(address.ip()).unwrap_or_else(|| asked.clone())),
        // A name, which the node's own DNS answers.
        Err(_) => steps.push(asked.split(':').next().unwrap_or(asked).to_owned()),
    }
    steps.push(format!("ClusterIP {}:{}", facts.cluster_ip, facts.port));
    steps.push(format!("pod {} {}:{} on {}", said.pod, said.pod_ip, facts.target, said.node));
    steps.join(" -> ")
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    fn facts() -> Facts {
        let node = |name: &str, ip: &str| Node { name: name.into(), ip: ip.parse().unwrap() };
        Facts {
            node_port: 30080,
            cluster_ip: "10.96.1.2".parse().unwrap(),
            port: 80,
            target: 8080,
            nodes: vec![node("node-1", "192.168.77.11"), node("node-2", "192.168.77.12")],
            pod: None,
        }
    }

    fn answer(from: &str, asked: &str, client: &str) -> Answer {
        let body = format!(
            r#"{{"pod": "hello-1", "node": "node-2", "podIP": "10.244.1.4", "client": "{client}", "method": "GET", "path": "/"}}"#
        );
        Answer::of(from, asked, Ok(body))
    }

    #[test]
    fn a_way_names_every_step() {
        let way = |from, asked, client| super::way(&answer(from, asked, client), &facts());
        assert_eq!(
            way("you", "127.0.0.1:30080", "192.168.77.11:40000"),
            "you -> 127.0.0.1:30080 -> node-1 192.168.77.11:30080 -> ClusterIP 10.96.1.2:80 -> pod hello-1 10.244.1.4:8080 on node-2"
        );
        assert!(
            way("you", "127.0.0.1:30080", "192.168.77.1:5").contains(" -> node-2 192.168.77.12:30080 -> ")
        );
        assert_eq!(
            way("node-1", "192.168.77.12:30080", "192.168.77.12:1"),
            "node-1 -> node-2 192.168.77.12:30080 -> ClusterIP 10.96.1.2:80 -> pod hello-1 10.244.1.4:8080 on node-2"
        );
        assert_eq!(
            way("pod hello-2", "hello:80", "10.244.0.2:1"),
            "pod hello-2 -> hello -> ClusterIP 10.96.1.2:80 -> pod hello-1 10.244.1.4:8080 on node-2"
        );
        let silent = Answer::of("you", "127.0.0.1:1", Err(anyhow!("refused")));
        assert_eq!(super::way(&silent, &facts()), "you -> 127.0.0.1:1 -> nothing: refused");
    }

    #[test]
    fn answers_stand_below_each_other() {
        let answers = [
            answer("you", "127.0.0.1:30080", "192.168.77.11:4"),
            Answer::of("node-1", "x", Err(anyhow!("refused by a firewall"))),
        ];
        assert_eq!(
            table(&answers),
            [
                "FROM     ASKED             ANSWERED BY   ON       AS SEEN THERE",
                "you      127.0.0.1:30080   hello-1       node-2   192.168.77.11:4",
                "node-1   x                 nobody: refused by a firewall",
            ]
        );
    }

    #[test]
    fn what_is_no_answer_of_ours_is_shown() {
        assert_eq!(read("hi\n"), Err("an answer that is not ours: hi".into()));
    }
}
