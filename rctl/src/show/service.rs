//! `service ls`.

use rorqual_proto::wire::{ServiceView, service_spec::Mode};
use serde::Serialize;

use super::ports;
use crate::human;
use crate::table::Table;

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Row {
    #[serde(rename = "ID")]
    id: String,
    name: String,
    mode: &'static str,
    replicas: String,
    image: String,
    ports: String,
}

pub(crate) fn row(view: &ServiceView) -> Row {
    let service = view.service.clone().unwrap_or_default();
    let spec = service.spec.unwrap_or_default();
    let container = spec.container.unwrap_or_default();
    let most = spec.placement.unwrap_or_default().max_replicas_per_node;
    let bound = if most > 0 { format!(" (max {most} per node)") } else { String::new() };
    let given = if service.ports.is_empty() { &spec.ports } else { &service.ports };
    let wanted = match &spec.mode {
        Some(Mode::Replicated(replicated)) => replicated.replicas,
        None => view.desired,
    };
    Row {
        id: service.id,
        name: spec.name,
        mode: "replicated",
        replicas: format!("{}/{wanted}{bound}", view.running),
        image: human::familiar_image(&container.image).to_owned(),
        ports: ports::cell(given, "*"),
    }
}

pub(crate) fn table(rows: Vec<Row>, no_trunc: bool) -> String {
    let mut table = Table::new(&["ID", "NAME", "MODE", "REPLICAS", "IMAGE", "PORTS"]);
    for row in rows {
        let id = if no_trunc { row.id } else { human::short_id(&row.id) };
        table.row(vec![id, row.name, row.mode.to_owned(), row.replicas, row.image, row.ports]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use rorqual_proto::wire::{ContainerSpec, Placement, PortSpec, Replicated, Service, ServiceSpec};

    use super::*;

    #[test]
    fn golden() {
        let spec = ServiceSpec {
            name: "web".into(),
            container: Some(ContainerSpec {
                image: "docker.io/library/nginx:demo".into(),
                ..Default::default()
            }),
            mode: Some(Mode::Replicated(Replicated { replicas: 10 })),
            placement: Some(Placement { max_replicas_per_node: 4, ..Default::default() }),
            ..Default::default()
        };
        let service = Service {
            id: "k3x0a9b8c7d6e5f4g3h2i1j0z".into(),
            spec: Some(spec),
            ports: vec![PortSpec { published: 8080, target: 80, protocol: 1, ..Default::default() }],
            ..Default::default()
        };
        let view = ServiceView { service: Some(service), running: 3, ..Default::default() };
        let json = serde_json::to_string(&row(&view)).unwrap();
        assert_eq!(
            json,
            r#"{"ID":"k3x0a9b8c7d6e5f4g3h2i1j0z","Name":"web","Mode":"replicated","Replicas":"3/10 (max 4 per node)","Image":"nginx:demo","Ports":"*:8080->80/tcp"}"#
        );
        let expected = "\
ID             NAME   MODE         REPLICAS                IMAGE        PORTS
k3x0a9b8c7d6   web    replicated   3/10 (max 4 per node)   nginx:demo   *:8080->80/tcp
";
        assert_eq!(table(vec![row(&view)], false), expected);
    }
}
