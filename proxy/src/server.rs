//! `llm-proxy server`: puts the planes together, starts them, and ends them in the right order.
//!
//! Three worlds of threads: Pingora's runtime carries exchanges, and the control runtime has everything that may wait
//! (store, admin plane, change feed). Journal consumers have threads of their own.

use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use futures::FutureExt;
use futures::future::BoxFuture;
use llm_proxy_admin::{AdminOptions, Courier, Health, SinkStatus, UsageCounter};
use llm_proxy_core::policy::{EndpointPattern, Glob};
use llm_proxy_core::prices::PriceTable;
use llm_proxy_core::routing::{Api, Routes};
use llm_proxy_plugins::erasure;
use llm_proxy_plugins::journal::{Feed, Journal, Options as JournalOptions};
use llm_proxy_plugins::sinks::SinksSettings;
use llm_proxy_store::{RootKey, Store};
use pingora_core::connectors::{ConnectorOptions, TransportConnector};
use pingora_core::listeners::{ListenerConfig, Listeners};
use pingora_core::protocols::l4::stream::L4BufferSettings;
use pingora_core::server::configuration::ServerConf;
use pingora_core::server::{RunArgs, Server};
use pingora_core::services::listening::Service;
use pingora_core::tls::{RootCertStore, load_platform_certs_incl_env_into_store};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, watch};

use crate::data_dir::DataDir;
use crate::edge::{Edge, Entrance};
use crate::followers::{follow_changes, until_applied};
use crate::house::{self, Consumers, Eraser};
use crate::plane::drain::Drain;
use crate::plane::held::HeldBytes;
use crate::plane::metrics::{self, Metrics};
use crate::plane::sampler::Sampler;
use crate::plane::settle;
use crate::plane::tokens::Tokens;
use crate::plane::upstream::Upstream;
use crate::plane::{Gateway, Plane};
use crate::served::{Books, Served, sink_tls};
use crate::settings::{ApiSettings, DispatcherPlace, Settings};
use crate::tls::TlsListener;
use crate::words::one_line;
use crate::{logging, shutdown};

/// How long sinks may take at the end for what is there. What they have not taken by then waits for the next start.
const DELIVERY: Duration = Duration::from_secs(5);
/// Beyond the drain time, how long the end of the process may take at most.
const LAST_STEPS: Duration = Duration::from_secs(10);

/// What is different in the demo.
pub struct Demo {
    /// Where its provider is.
    pub mock: SocketAddr,
    /// What it does once everything listens.
    pub on_ready: OnReady,
}

/// Is given the store, and where the planes listen.
pub type OnReady = Box<dyn FnOnce(Store, SocketAddr, SocketAddr) -> BoxFuture<'static, Result<()>> + Send>;

/// How long the store may take for the leases that are given back when the process ends.
const GIVE_BACK: Duration = Duration::from_secs(2);

/// Runs all planes until a signal ends the process.
///
/// # Errors
/// Whatever keeps it from starting, in one line that says what to do.
pub fn run(settings: Settings, warnings: &[String], demo: Option<Demo>) -> Result<()> {
    logging::install(settings.log_level, settings.log_format);
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    raise_file_limit();
    // rustls wants one provider for the process; the tree has only ring.
    let _ = rustls::crypto::ring::default_provider().install_default();

    let (listen_addr, admin_listener) = listen(&settings)?;
    let admin_addr = admin_listener.local_addr()?;
    // What cannot be used stops the start before anything is made.
    let upstreams = upstreams(&settings.apis, demo.as_ref().map(|demo| demo.mock))?;
    let connector = connector(settings.apis.iter().any(|api| api.base_url.tls))?;
    let data_dir = DataDir::open(&settings.data_dir, "server")?;
    let root_key = match &settings.root_key {
        Some(given) => RootKey::from_base64(given.expose()).context("ROOT_KEY")?,
        None => RootKey::load_or_generate(&data_dir.join("root_key")).context("ROOT_KEY")?,
    };
    let (management_token, token_file) = data_dir.management_token(settings.management_token.clone())?;

    let control = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("control")
        .enable_all()
        .build()
        .context("the control runtime cannot be started")?;
    let tls = match &settings.tls {
        Some(files) => {
            // Signals are watched by the runtime that renews.
            let _control = control.enter();
            let (listener, renewal) = TlsListener::open(files)?;
            control.spawn(renewal.run());
            Some(listener)
        }
        None => {
            control.spawn(ignore_hangup());
            None
        }
    };
    let database_url =
        settings.database_url.clone().unwrap_or_else(|| format!("sqlite:{}", data_dir.join("llm-proxy.db").display()));
    let store = control.block_on(Store::open(&database_url, &root_key)).context("DATABASE_URL")?;
    let journal_dir = data_dir.join("journal");
    let events_file = settings.sinks.file.as_ref().map(|file| file.path_in(&settings.data_dir));
    erasure::sweep(&settings.data_dir, &journal_dir, events_file.as_deref()).context("DATA_DIR")?;
    let options = JournalOptions {
        mode: settings.journal_mode,
        max_bytes: settings.journal_max_bytes,
        segment_bytes: segment_bytes(settings.journal_max_bytes),
        ..JournalOptions::default()
    };
    let (journal, recovered) = Journal::open(&journal_dir, options).context("DATA_DIR")?;
    if recovered.torn_bytes > 0 || recovered.bad_records > 0 || recovered.unknown_exchanges > 0 {
        tracing::warn!(
            torn_bytes = recovered.torn_bytes,
            bad_records = recovered.bad_records,
            unknown_exchanges = recovered.unknown_exchanges,
            "exchanges were found begun and not ended, or the journal was damaged: it was recovered"
        );
    }
    let prometheus = metrics::install()?;
    let counter = UsageCounter::start(&journal, store.clone(), control.handle().clone())?;
    let courier = Courier::start(&journal, store.clone(), control.handle().clone());
    let served = match settings.dispatcher {
        DispatcherPlace::Inside => {
            let feed = Feed::from(&journal);
            Some(Served::from_journal(&settings.sinks, &settings.data_dir, feed, &sink_tls()?)?)
        }
        DispatcherPlace::Outside => None,
    };

    let drain = Drain::default();
    let gateway = Arc::new(Gateway {
        routes: Routes::new(settings.apis.iter().map(api).collect()),
        upstreams,
        connector,
        tokens: Tokens::new(store.clone(), control.handle().clone(), drain.cut_token()),
        pepper: store.pepper(),
        journal: journal.clone(),
        prices: PriceTable::shipped(),
        metrics: Metrics::default(),
        held: HeldBytes::new(settings.max_held_bytes_total),
        begun: Default::default(),
        sampler: Sampler::default(),
        drain,
    });

    let position = control.block_on(store.change_position()).context("DATABASE_URL")?;
    let (applied, is_applied) = watch::channel(position);
    control.spawn(follow_changes(Arc::clone(&gateway), store.subscribe(), applied));
    let books = served.as_ref().map(Served::books).unwrap_or_default();
    let eraser = Eraser {
        data_dir: settings.data_dir.clone(),
        journal: journal.clone(),
        file: served.as_ref().and_then(Served::file),
        has_file_elsewhere: served.is_none() && settings.sinks.file.is_some(),
    };
    let render_metrics: Arc<dyn Fn() -> String + Send + Sync> = {
        let (gateway, prometheus, books) = (Arc::clone(&gateway), prometheus.clone(), books.clone());
        Arc::new(move || {
            metrics::observe(gateway.drain.running(), gateway.held.held());
            metrics::observe_journal(&gateway.journal.stats());
            metrics::observe_sinks(books.iter().map(|books| (books.name(), books.stats())));
            prometheus.render()
        })
    };
    let stopped = Arc::new(Notify::new());
    let admin = {
        let asker = counter.asker();
        let ready = Arc::clone(&gateway);
        let options = AdminOptions {
            management_token,
            known_apis: settings.apis.iter().map(|api| api.name.clone()).collect(),
            default_api: settings.default_api.clone(),
            render_metrics,
            health: Arc::new(move || {
                let health = if ready.drain.is_stopping() {
                    Health::NotReady("the process is stopping".into())
                } else if ready.loses_records() {
                    Health::NotReady(
                        "the journal cannot be written: records are being lost, or requests refused; the log has the reason"
                            .into(),
                    )
                } else {
                    Health::Ready
                };
                futures::future::ready(health).boxed()
            }),
            applied: {
                let store = store.clone();
                Arc::new(move || {
                    let (store, applied) = (store.clone(), is_applied.clone());
                    async move { until_applied(&store, applied).await }.boxed()
                })
            },
            catch_up: Arc::new(move || {
                let asker = asker.clone();
                async move { asker.catch_up().await }.boxed()
            }),
            client_address: {
                let record = settings.record_client_address;
                Arc::new(move |address| record.of(address))
            },
            erase: {
                let eraser = eraser.clone();
                Arc::new(move |request| eraser.clone().erase(request).boxed())
            },
            sinks: {
                let (books, sinks) = (books.clone(), settings.sinks.clone());
                Arc::new(move || books.iter().map(|books| sink_status(books, &sinks)).collect())
            },
        };
        let router = llm_proxy_admin::router(store.clone(), options);
        let stopped = Arc::clone(&stopped);
        control.spawn(async move {
            match tokio::net::TcpListener::from_std(admin_listener) {
                Ok(listener) => llm_proxy_admin::serve(listener, router, async move { stopped.notified().await }).await,
                Err(error) => Err(error),
            }
        })
    };

    let elsewhere = served.is_none().then(|| (settings.data_dir.clone(), settings.sinks.clone()));
    let consumers = Consumers { counted: counter.cursor(), books, elsewhere };
    control.spawn(house::keep(Arc::clone(&gateway), prometheus, consumers));
    control.spawn(house::retain(store.clone(), eraser));
    if let Some(path) = &token_file {
        tracing::info!("the management token is in {}", path.display());
    }
    if settings.root_key.is_none() {
        tracing::info!(
            "the root key is in {}: keep a copy, provider keys cannot be read without it",
            data_dir.join("root_key").display()
        );
    }
    let scheme = if tls.is_some() { "https" } else { "http" };
    tracing::info!("listening: data plane {scheme}://{listen_addr}, admin plane http://{admin_addr}");
    if let Some(Demo { on_ready, .. }) = demo {
        let store = store.clone();
        let ready = on_ready(store, listen_addr, admin_addr);
        control.spawn(async move {
            accepts(listen_addr).await;
            if let Err(error) = ready.await {
                tracing::error!("{}", one_line(&error));
            }
        });
    }

    let stopping = Arc::new(Notify::new());
    let header_within = settings.proxy_protocol.then_some(settings.head_timeout);
    let entrance = Entrance::new(settings.trusted_proxies, header_within, settings.record_client_address);
    let edge = Edge::new(Arc::new(Plane { gateway: Arc::clone(&gateway) }), settings.head_timeout, tls, entrance);
    let ending = Ending {
        gateway,
        counter,
        courier,
        served,
        journal,
        store,
        admin,
        stopped,
        patience: settings.drain_timeout,
        _data_dir: data_dir,
    };
    std::thread::Builder::new().name("ending".into()).spawn({
        let stopping = Arc::clone(&stopping);
        move || ending.run(&control, &stopping)
    })?;
    serve(edge, listen_addr, settings.drain_timeout, shutdown::Signals { stopping });
    Ok(())
}

/// The providers, with the network's proxies in between where the environment names some. The demo's own provider is
/// behind none.
fn upstreams(apis: &[ApiSettings], mock: Option<SocketAddr>) -> Result<Vec<Upstream>> {
    let environment: HashMap<String, String> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let upstream = |(index, api): (usize, &ApiSettings)| {
        let is_ours =
            mock.is_some_and(|mock| api.base_url.host == mock.ip().to_string() && api.base_url.port == mock.port());
        Upstream::new(api, index, |name| environment.get(name).filter(|_| !is_ours).map(String::as_str))
    };
    apis.iter().enumerate().map(upstream).collect()
}

/// Where connections to providers come from. The certificate authorities that providers are checked against are read
/// once here: Pingora's connector panics where they cannot be.
fn connector(speaks_tls: bool) -> Result<TransportConnector> {
    let mut roots = RootCertStore::empty();
    load_platform_certs_incl_env_into_store(&mut roots).map_err(|error| {
        anyhow::anyhow!(
            "the certificate authorities that providers are checked against cannot be read: {error}; \
             SSL_CERT_FILE and SSL_CERT_DIR name them, without these it is the system's store"
        )
    })?;
    if speaks_tls && roots.is_empty() {
        tracing::warn!(
            "no certificate authorities are known, so no provider with https can be reached: install ca-certificates, \
             or name them in SSL_CERT_FILE"
        );
    }
    // Its pool stays empty: connections wait elsewhere (`plane/idle.rs`).
    Ok(TransportConnector::new(Some(ConnectorOptions::new(1))))
}

/// Binds both listeners, so that a taken port is told before anything is made.
fn listen(settings: &Settings) -> Result<(SocketAddr, TcpListener)> {
    let bind = |name: &str, address: SocketAddr| {
        TcpListener::bind(address).map_err(|error| match error.kind() {
            std::io::ErrorKind::AddrInUse => {
                anyhow::anyhow!("{name}: {address} is taken by another process; stop it, or choose another address")
            }
            _ => anyhow::anyhow!("{name}: {address} cannot be listened on: {error}"),
        })
    };
    let data = bind("LISTEN_ADDR", settings.listen_addr)?;
    let admin = bind("ADMIN_LISTEN_ADDR", settings.admin_listen_addr)?;
    admin.set_nonblocking(true)?;
    // Pingora binds for itself, as it must to hand its listeners to a successor.
    Ok((data.local_addr()?, admin))
}

/// Runs Pingora until the process ends.
fn serve(edge: Edge, listen_addr: SocketAddr, drain_timeout: Duration, signals: shutdown::Signals) {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let conf = ServerConf {
        threads,
        // Pingora sleeps all of it; the ending exits the process sooner.
        grace_period_seconds: Some(drain_timeout.saturating_add(LAST_STEPS).as_secs().saturating_add(1)),
        graceful_shutdown_timeout_seconds: Some(1),
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let mut listeners = Listeners::new();
    // We gather what we write and read into buffers of our own: one below them would be copied through, and cost each
    // connection 64 KiB.
    listeners.add_listener(ListenerConfig::tcp(listen_addr.to_string()).l4_buffer(L4BufferSettings::unbuffered()));
    let service = Service::with_listeners("data plane".to_owned(), listeners, edge);
    server.add_service(service);
    server.run(RunArgs { shutdown_signal: Box::new(signals) });
}

/// Everything that must be ended, in order.
struct Ending {
    gateway: Arc<Gateway>,
    counter: UsageCounter,
    courier: Courier,
    served: Option<Served>,
    journal: Journal,
    store: Store,
    admin: tokio::task::JoinHandle<std::io::Result<()>>,
    stopped: Arc<Notify>,
    patience: Duration,
    _data_dir: DataDir,
}

impl Ending {
    /// Waits for the order to stop, then: drain, count, deliver, sync, close, exit.
    fn run(self, control: &Runtime, stopping: &Notify) {
        control.block_on(stopping.notified());
        control.block_on(shutdown::drain(&self.gateway, self.patience));
        settle::record_rest(&self.gateway);
        let given_back = async { tokio::time::timeout(GIVE_BACK, self.gateway.tokens.give_back_all()).await };
        if control.block_on(given_back).is_err() {
            tracing::warn!("leases could not be given back: their tokens fall short by them");
        }
        self.stopped.notify_one();
        self.courier.drain();
        self.counter.stop();
        for left in self.served.map(|served| served.drain(DELIVERY)).unwrap_or_default() {
            if left.records > 0 {
                let (sink, records) = (left.sink, left.records);
                tracing::warn!(sink, records, "not delivered yet: the journal has them, and the next start goes on");
            }
        }
        if let Err(error) = self.journal.sync() {
            tracing::error!(%error, "the journal could not be synced");
        }
        self.journal.close();
        self.admin.abort();
        control.block_on(self.store.close());
        tracing::info!("stopped");
        std::process::exit(0);
    }
}

/// SIGHUP renews the certificate (`tls.rs`). Where there is none it does nothing: an operator who sends it does not mean the
/// process to die, which is what the system would do.
async fn ignore_hangup() {
    let Ok(mut hangup) = signal(SignalKind::hangup()) else { return };
    while hangup.recv().await.is_some() {
        tracing::info!("SIGHUP: there is no certificate to be read again, and other settings need a restart");
    }
}

/// As many open files as the system lets this process have: each exchange needs two, and an idle connection one.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!(%error, current = limit.current, "the number of open files could not be raised to its limit");
    }
}

/// Waits until the data plane accepts connections.
async fn accepts(address: SocketAddr) {
    while tokio::net::TcpStream::connect(address).await.is_err() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// How long a segment of the journal grows. A bound is held by deleting old ones, and the newest two are never deleted:
/// with four to the bound it holds.
fn segment_bytes(max_bytes: Option<u64>) -> u64 {
    let default = JournalOptions::default().segment_bytes;
    max_bytes.map_or(default, |most| (most / 4).clamp(1 << 20, default))
}

/// The state of a sink, for whoever asks the management API.
fn sink_status(books: &Books, sinks: &SinksSettings) -> SinkStatus {
    let stats = books.stats();
    let kind = sinks.dispatched.iter().find(|sink| sink.name == books.name()).map_or("file", |sink| sink.kind);
    SinkStatus {
        name: books.name().to_owned(),
        kind: kind.to_owned(),
        health: stats.health.name().to_owned(),
        delivered: stats.delivered,
        duplicates: stats.duplicates,
        dead: stats.dead,
        dropped: stats.dropped,
        retried: stats.retried,
        pending_records: stats.lag_records,
        lag_seconds: stats.lag.as_secs_f64(),
        last_error: books.last_error(),
    }
}

fn api(settings: &ApiSettings) -> Api {
    let boxed = |texts: &[String]| texts.iter().map(|text| text.as_str().into()).collect::<Vec<Box<str>>>();
    Api {
        name: settings.name.as_str().into(),
        dialect: settings.dialect,
        base_path: settings.base_url.path.as_str().into(),
        allowed_endpoints: settings
            .allowed_endpoints
            .as_ref()
            .map(|patterns| patterns.iter().map(|pattern| EndpointPattern::new(pattern)).collect()),
        allowed_methods: settings.allowed_methods.as_deref().map(boxed),
        param_whitelist: settings
            .param_whitelist
            .iter()
            .flatten()
            .map(|(field, globs)| (field.as_str().into(), globs.iter().map(|glob| Glob::new(glob)).collect()))
            .collect(),
        allowed_origins: settings.allowed_origins.as_deref().map(boxed),
        required_headers: settings.required_headers.as_deref().map(boxed).unwrap_or_default(),
        inject_usage: settings.inject_usage,
    }
}
