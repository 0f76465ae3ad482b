//! Services and their tasks: the writes are decided by the planner's pure functions, the views read from
//! the state.

use std::collections::BTreeSet;
use std::sync::Arc;

use rorqual_planner::{State, prepare as decide};
use rorqual_proto::model::{
    DesiredState, NodeId, NodeState, Service, ServiceId, ServiceMode, ServiceSpec, Task,
};
use rorqual_proto::{validate, wire};
use tonic::Status;

use super::Control;
use super::ipv6::Ipv6;
use super::ports::{self, Held};
use crate::auths::Given;
use crate::status;

impl Control {
    pub(super) async fn create(
        &self,
        request: wire::CreateServiceRequest,
    ) -> Result<wire::CreateServiceResponse, Status> {
        let spec = spec(request.spec)?;
        let name = spec.name.clone();
        let id = ServiceId::from_bits(rand::random());
        let sealed = self.auths.of_new(&id, &spec, request.auths)?;
        let action = self.store.read(|state| decide::create_service(state, spec, id, sealed));
        let action = action.map_err(status::from_refusal)?;
        self.store.propose(vec![action]).await.map_err(status::from_propose)?;
        Ok(wire::CreateServiceResponse { service: Some(self.written(&name)?) })
    }

    pub(super) async fn update(
        &self,
        request: wire::UpdateServiceRequest,
    ) -> Result<wire::UpdateServiceResponse, Status> {
        let spec = spec(request.spec)?;
        let expected = (request.version != 0).then_some(request.version);
        let given = Given { list: request.auths, forget: request.forget_auths };
        let (id, action) = self.store.read(|state| {
            let service = find(state, &request.name)?;
            let sealed = self.auths.of_updated(&service, &spec, given)?;
            let action = decide::update_service(state, &service.id, spec, expected, sealed);
            Ok::<_, Status>((service.id.clone(), action.map_err(status::from_refusal)?))
        })?;
        self.store.propose(vec![action]).await.map_err(status::from_propose)?;
        Ok(wire::UpdateServiceResponse { service: Some(self.written(id.as_str())?) })
    }

    pub(super) async fn roll_back(
        &self,
        request: wire::RollbackServiceRequest,
    ) -> Result<wire::RollbackServiceResponse, Status> {
        let (id, action) = self.store.read(|state| {
            let id = find(state, &request.name)?.id.clone();
            let action = decide::rollback(state, &id).map_err(status::from_refusal)?;
            Ok::<_, Status>((id, action))
        })?;
        self.store.propose(vec![action]).await.map_err(status::from_propose)?;
        Ok(wire::RollbackServiceResponse { service: Some(self.written(id.as_str())?) })
    }

    pub(super) async fn scale(
        &self,
        request: wire::ScaleServicesRequest,
    ) -> Result<wire::ScaleServicesResponse, Status> {
        let mut ids = Vec::with_capacity(request.scales.len());
        let actions = self.store.read(|state| {
            let mut actions = Vec::with_capacity(request.scales.len());
            for scale in &request.scales {
                let service = find(state, &scale.name)?;
                if ids.contains(&service.id) {
                    return Err(Status::invalid_argument(format!("`{}` is named twice", scale.name)));
                }
                let action =
                    decide::scale(state, &service.id, scale.replicas).map_err(status::from_refusal)?;
                ids.push(service.id.clone());
                actions.push(action);
            }
            Ok(actions)
        })?;
        if actions.is_empty() {
            return Err(Status::invalid_argument("scales: expected at least one SERVICE=REPLICAS"));
        }
        self.store.propose(actions).await.map_err(status::from_propose)?;
        let services = ids.iter().map(|id| self.written(id.as_str())).collect::<Result<_, _>>()?;
        Ok(wire::ScaleServicesResponse { services })
    }

    pub(super) async fn remove(
        &self,
        request: wire::RemoveServiceRequest,
    ) -> Result<wire::RemoveServiceResponse, Status> {
        let (ids, actions) = self.store.read(|state| {
            let mut ids = BTreeSet::new();
            for name in &request.names {
                ids.insert(find(state, name)?.id.clone());
            }
            let actions = ids
                .iter()
                .map(|id| decide::remove(state, id).map_err(status::from_refusal))
                .collect::<Result<Vec<_>, _>>()?;
            Ok::<_, Status>((ids, actions))
        })?;
        if actions.is_empty() {
            return Err(Status::invalid_argument("names: expected at least one service"));
        }
        self.store.propose(actions).await.map_err(status::from_propose)?;
        Ok(wire::RemoveServiceResponse { ids: ids.iter().map(ToString::to_string).collect() })
    }

    pub(super) async fn service_views(
        &self,
        request: wire::ListServicesRequest,
    ) -> Result<wire::ListServicesResponse, Status> {
        self.store.read(|state| {
            let services: Vec<Arc<Service>> = if request.names.is_empty() {
                state.services().cloned().collect()
            } else {
                request.names.iter().map(|name| find(state, name)).collect::<Result<_, _>>()?
            };
            let services = services.iter().map(|service| view(state, service)).collect();
            Ok(wire::ListServicesResponse { services })
        })
    }

    pub(super) async fn task_views(
        &self,
        request: wire::ListTasksRequest,
    ) -> Result<wire::ListTasksResponse, Status> {
        self.store.read(|state| {
            let mut tasks: Vec<Arc<Task>> = if request.services.is_empty() {
                state.tasks().cloned().collect()
            } else {
                let mut tasks = Vec::new();
                for name in &request.services {
                    let service = find(state, name)?;
                    tasks.extend(state.tasks_of_service(&service.id).cloned());
                }
                tasks
            };
            if !request.nodes.is_empty() {
                tasks.retain(|task| {
                    let node = task.node_id.as_ref().and_then(|id| state.node(id));
                    node.is_some_and(|node| {
                        let names = [node.id.as_str(), node.description.hostname.as_str()];
                        request.nodes.iter().any(|wanted| names.contains(&wanted.as_str()))
                    })
                });
            }
            tasks.sort_by(|a, b| {
                (&a.service_name, a.slot, b.meta.created_at_ms, &b.id).cmp(&(
                    &b.service_name,
                    b.slot,
                    a.meta.created_at_ms,
                    &a.id,
                ))
            });
            let tasks = tasks.iter().map(|task| wire::TaskView {
                node_hostname: hostname(state, task.node_id.as_ref()),
                explanation: remark(state, task),
                task: Some(Ipv6::new(state).task(task)),
            });
            Ok(wire::ListTasksResponse { tasks: tasks.collect() })
        })
    }

    fn written(&self, name: &str) -> Result<wire::Service, Status> {
        self.store.read(|state| find(state, name).map(|service| shown(&service)))
    }
}

/// A service as it stands: counts, live tasks, and what they wait for.
pub(super) fn view(state: &State, service: &Service) -> wire::ServiceView {
    let ServiceMode::Replicated { replicas } = service.spec.mode;
    let held = Held::of(state, service);
    let ipv6 = Ipv6::new(state);
    let mut view = wire::ServiceView {
        service: Some(wire::Service { vips: ipv6.vips(service), ..shown(service) }),
        desired: if service.removing { 0 } else { replicas },
        explanations: service.problem.iter().cloned().collect(),
        port_problems: held.problems(),
        port_unserved: held.is_unserved(),
        ..wire::ServiceView::default()
    };
    let mut silent = BTreeSet::new();
    for task in state.tasks_of_service(&service.id) {
        let ended = task.status.state.is_terminal();
        if !ended {
            view.running += u32::from(task.is_endpoint());
            view.updated += u32::from(task.is_endpoint() && task.spec_version == service.spec_version);
        }
        let wanted = task.desired_state <= DesiredState::Running;
        if wanted || !ended {
            view.tasks.push(ipv6.task(task));
            silent.extend(task.node_id.iter().filter(|id| !answers(state, id)));
        }
        let explanation = explanation(task);
        if wanted && !explanation.is_empty() && !view.explanations.iter().any(|known| known == explanation) {
            view.explanations.push(explanation.to_owned());
        }
    }
    view.silent_nodes = silent.into_iter().map(ToString::to_string).collect();
    view
}

/// A service as everybody may see it.
fn shown(service: &Service) -> wire::Service {
    wire::Service { sealed_auths: Vec::new(), ..wire::Service::from(service) }
}

fn answers(state: &State, id: &NodeId) -> bool {
    state.node(id).is_some_and(|node| node.status.state == NodeState::Ready)
}

/// Why a task is still without a node, in the planner's words; empty where it has one.
fn explanation(task: &Task) -> &str {
    if task.node_id.is_none() { &task.status.message } else { "" }
}

/// What there is to say of a task beside its status: why it has no node, else who holds its ports there.
fn remark(state: &State, task: &Task) -> String {
    let live = !task.status.state.is_terminal();
    match (&task.node_id, state.service(&task.service_id)) {
        (Some(node), Some(service)) if live => ports::on_node(state, service, node).unwrap_or_default(),
        _ => explanation(task).to_owned(),
    }
}

fn spec(spec: Option<wire::ServiceSpec>) -> Result<ServiceSpec, Status> {
    let spec = spec.ok_or_else(|| Status::invalid_argument("spec: expected a service"))?;
    let spec = ServiceSpec::try_from(spec).map_err(status::from_field)?;
    validate::service_spec(&spec).map_err(status::from_field)?;
    Ok(spec)
}

/// A node's host name, or its id where it is gone.
pub(super) fn hostname(state: &State, node: Option<&NodeId>) -> String {
    let Some(id) = node else { return String::new() };
    state.node(id).map_or_else(|| id.to_string(), |node| node.description.hostname.clone())
}

/// The service that a name, an id, or a unique prefix of an id means.
pub(super) fn find(state: &State, name: &str) -> Result<Arc<Service>, Status> {
    if let Some(service) = state.service_by_name(name) {
        return Ok(Arc::clone(service));
    }
    let by_id = |service: &&Arc<Service>| !name.is_empty() && service.id.as_str().starts_with(name);
    let found: Vec<_> = state.services().filter(by_id).take(2).collect();
    match found.as_slice() {
        [service] => Ok(Arc::clone(service)),
        [] => Err(Status::not_found(format!("no service `{name}`: `rctl service ls` lists them"))),
        _ => Err(Status::invalid_argument(format!("`{name}` means several services: give more of the id"))),
    }
}
