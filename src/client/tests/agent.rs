//! An agent that does as a test tells it. It speaks the real protocol over a real broker, and real HTTP.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use dewar_bus::{Bus, BusConfig, Message, Subscription};
use dewar_protocol::{
    Advertise, AppId, CellId, DropletExited, DropletSha1, ExitReason, FindDroplet, FoundInstance, InstanceId, InstanceState, LogLine,
    LogRequest, LogSource, LogStream, Mib, PlacementProperties, SetupReply, StagingAdvertise, StagingMessage, StagingReply, StartMessage,
    Stop, UnixSeconds, subjects,
};
use sha1::{Digest, Sha1};

/// How it deals with a staging request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Staging {
    /// As it should.
    Works,
    /// Setup works, staging fails.
    Fails,
    /// Names another droplet than it uploads.
    Lies,
    /// Says no more after setup.
    Hangs,
    /// Advertises, but does not listen.
    Deaf,
}

/// How instances do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Running {
    Healthy,
    Crashes,
}

/// What a test sets and looks at.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) staging: Staging,
    pub(crate) running: Running,
    pub(crate) memory: Mib,
    pub(crate) instances: Vec<FoundInstance>,
    pub(crate) starts: Vec<StartMessage>,
    /// Lines of the past, before the app's last.
    pub(crate) kept: Vec<LogLine>,
    /// How often instances were asked for.
    pub(crate) finds: usize,
    /// What happened, in order, a word or three each.
    pub(crate) history: Vec<String>,
}

#[derive(Clone)]
pub(crate) struct Agent {
    id: CellId,
    bus: Bus,
    http: reqwest::Client,
    state: Arc<Mutex<State>>,
}

impl Agent {
    pub(crate) async fn start(id: &str, config: BusConfig, staging: Staging) -> Self {
        let (bus, _) = Bus::connect(config).await.unwrap();
        bus.wait_up(std::time::Duration::from_secs(30)).await.unwrap();
        // An error means that another test was first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let (instances, starts, kept, history) = (vec![], vec![], vec![], vec![]);
        let state = State { staging, running: Running::Healthy, memory: Mib(1024), instances, starts, kept, finds: 0, history };
        let agent = Self { id: CellId::from(id), bus, http, state: Arc::new(Mutex::new(state)) };
        let mut all = BTreeMap::new();
        let mut wanted = vec![
            subjects::STAGING_LOCATE.to_owned(),
            subjects::STAGING_STOP.to_owned(),
            subjects::DEA_LOCATE.to_owned(),
            subjects::directed_start(&agent.id),
            subjects::DEA_STOP.to_owned(),
            subjects::DEA_FIND_DROPLET.to_owned(),
            subjects::LOGS.to_owned(),
        ];
        if staging != Staging::Deaf {
            wanted.push(subjects::directed_staging(&agent.id));
        }
        for subject in wanted {
            all.insert(subject.clone(), agent.bus.subscribe(&subject).await.unwrap());
        }
        agent.bus.flush(std::time::Duration::from_secs(30)).await.unwrap();
        for (subject, subscription) in all {
            tokio::spawn(agent.clone().serve(subject, subscription));
        }
        agent
    }

    pub(crate) fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.state.lock().unwrap())
    }

    pub(crate) fn history(&self) -> Vec<String> {
        self.with(|state| state.history.clone())
    }

    async fn serve(self, subject: String, mut subscription: Subscription) {
        while let Some(message) = subscription.next().await {
            match subject.as_str() {
                subjects::STAGING_LOCATE => self.advertise_staging(),
                subjects::STAGING_STOP => self.with(|state| state.history.push("staging.stop".to_owned())),
                subjects::DEA_LOCATE => self.advertise(),
                subjects::DEA_STOP => self.stop(&serde_json::from_slice(&message.payload).unwrap()),
                subjects::DEA_FIND_DROPLET => self.find(&message),
                subjects::LOGS => self.log(&message),
                _ if subject.starts_with("staging.") => self.stage(&message).await,
                _ => self.run(serde_json::from_slice(&message.payload).unwrap()),
            }
        }
    }

    fn advertise_staging(&self) {
        let (available_memory, available_disk) = (self.with(|state| state.memory), Mib(1024));
        let advertisement = StagingAdvertise { id: self.id.clone(), stacks: vec![], available_memory, available_disk };
        self.bus.publish(subjects::STAGING_ADVERTISE, &advertisement).unwrap();
    }

    fn advertise(&self) {
        let advertisement = Advertise {
            id: self.id.clone(),
            stacks: vec![],
            available_memory: self.with(|state| state.memory),
            available_disk: Mib(1024),
            app_id_to_count: BTreeMap::new(),
            placement_properties: PlacementProperties::default(),
            url: None,
        };
        self.bus.publish(subjects::DEA_ADVERTISE, &advertisement).unwrap();
    }

    async fn stage(&self, message: &Message) {
        let inbox = message.reply_to.as_deref().unwrap();
        let request: StagingMessage = serde_json::from_slice(&message.payload).unwrap();
        let package = self.http.get(request.download_uri.expose()).send().await.unwrap().bytes().await.unwrap();
        let setup = SetupReply {
            task_id: request.task_id.clone(),
            task_streaming_log_url: None,
            detected_buildpack: None,
            error: None,
            droplet_sha1: None,
        };
        self.bus.publish(inbox, &setup).unwrap();
        let staging = self.with(|state| {
            state.history.push("stage".to_owned());
            state.staging
        });
        let mut reply = StagingReply {
            task_id: request.task_id,
            task_streaming_log_url: None,
            detected_buildpack: Some("scripted".to_owned()),
            buildpack_key: None,
            droplet_sha1: None,
            detected_start_command: Some("run".to_owned()),
            procfile: None,
            app_id: Some(request.app_id),
            error: None,
            error_info: None,
        };
        match staging {
            Staging::Hangs | Staging::Deaf => return,
            Staging::Fails => reply.error = Some("the buildpack is unhappy".to_owned()),
            Staging::Works => reply.droplet_sha1 = Some(self.upload(request.upload_uri.expose(), package.to_vec()).await),
            Staging::Lies => {
                self.upload(request.upload_uri.expose(), package.to_vec()).await;
                reply.droplet_sha1 = Some(DropletSha1::parse(&"0".repeat(40)).unwrap());
            }
        }
        self.bus.publish(inbox, &reply).unwrap();
    }

    /// The package serves as the droplet.
    async fn upload(&self, uri: &str, droplet: Vec<u8>) -> DropletSha1 {
        let hex: String = Sha1::digest(&droplet).iter().map(|byte| format!("{byte:02x}")).collect();
        let part = reqwest::multipart::Part::bytes(droplet).file_name("droplet.tgz");
        let form = reqwest::multipart::Form::new().part("upload[droplet]", part);
        let sent = self.http.post(format!("{uri}&async=true")).multipart(form).send().await.unwrap();
        assert!(sent.status().is_success(), "{}", sent.status());
        DropletSha1::parse(&hex).unwrap()
    }

    fn run(&self, start: StartMessage) {
        let running = self.with(|state| state.running);
        let number = self.with(|state| state.starts.len());
        let crashed = running == Running::Crashes;
        let instance = FoundInstance {
            dea: self.id.clone(),
            app_id: start.app_id.clone(),
            version: start.version.clone(),
            instance_id: InstanceId(format!("{}-{number}", self.id)),
            index: start.index,
            state: if crashed { InstanceState::Crashed } else { InstanceState::Running },
            state_timestamp: UnixSeconds(1.0),
            staged: "/".to_owned(),
            file_uri: None,
            credentials: None,
            file_uri_v2: None,
            stats: None,
            crash: None,
        };
        if crashed {
            let exited = DropletExited {
                cc_partition: start.cc_partition.clone(),
                app_id: start.app_id.clone(),
                version: start.version.clone(),
                instance_id: instance.instance_id.clone(),
                index: start.index,
                reason: ExitReason::Crashed,
                exit_status: 7,
                exit_description: "wasm trap: unreachable\n  0: main".to_owned(),
                crash_timestamp: Some(1),
            };
            self.bus.publish(subjects::DROPLET_EXITED, &exited).unwrap();
        }
        self.with(|state| {
            state.history.push(format!("start {}", start.index));
            state.instances.push(instance);
            state.starts.push(start);
        });
    }

    fn stop(&self, stop: &Stop) {
        let filter = &stop.filter;
        self.with(|state| {
            let indices = filter.indices.as_ref().map(|indices| format!(" {indices:?}")).unwrap_or_default();
            let all = if stop.whole_app { " all" } else { "" };
            state.history.push(format!("stop{all}{indices}"));
            state.instances.retain(|instance| {
                let matches = Some(&instance.app_id) == filter.app_id.as_ref()
                    && filter.version.as_ref().is_none_or(|version| *version == instance.version)
                    && filter.indices.as_ref().is_none_or(|indices| indices.contains(&instance.index));
                !matches || instance.state == InstanceState::Crashed
            });
        });
    }

    fn find(&self, message: &Message) {
        let question: FindDroplet = serde_json::from_slice(&message.payload).unwrap();
        let matches = |instance: &&FoundInstance| {
            Some(&instance.app_id) == question.app_id.as_ref()
                && question.version.as_ref().is_none_or(|version| *version == instance.version)
                && question.indices.as_ref().is_none_or(|indices| indices.contains(&instance.index))
        };
        let found: Vec<_> = self.with(|state| {
            state.finds += 1;
            state.instances.iter().filter(matches).cloned().collect()
        });
        for mut instance in found {
            if let (Some(url), Some(Some(path))) = (&mut instance.file_uri_v2, &question.path) {
                url.0 += &format!("{path}?hmac=0");
            }
            self.bus.publish(message.reply_to.as_deref().unwrap(), &instance).unwrap();
        }
    }

    /// Its last line of the past is the app's last.
    fn log(&self, message: &Message) {
        let request: LogRequest = serde_json::from_slice(&message.payload).unwrap();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let line = LogLine {
            app_id: request.app_id,
            source: LogSource::App,
            index: Some(0),
            stream: LogStream::Err,
            timestamp: UnixSeconds(now.as_secs_f64()),
            text: "last words".to_owned(),
        };
        let past = if request.tail > 0 { [self.with(|state| state.kept.clone()), vec![line]].concat() } else { vec![] };
        for line in past {
            self.bus.publish(message.reply_to.as_deref().unwrap(), &line).unwrap();
        }
    }

    pub(crate) fn count(&self, app: &AppId) -> usize {
        self.with(|state| state.instances.iter().filter(|instance| instance.app_id == *app).count())
    }
}
