//! The samples of `infra/five-calls`, run as they are: through Mandate against the local stack, and straight at Microsoft
//! against the simulator behind TLS.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Output, Stdio},
};

use devstack::{CLIENT_ID, interpreter};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

use super::harness::{CONTOSO, StackHarness};

/// The samples that run here. PowerShell and C# are parsed only, outside of this test.
const SAMPLES: [&str; 4] = ["mandate.sh", "mandate.py", "direct.sh", "direct.py"];

/// The secret key of the caller, which no process list may show.
const AWS_SECRET: &str = "aws/secret+key/of/the/caller";

/// The beginning of the claims in a JWT, behind its header. `next` begins in the same way, without a dot.
const JWT_CLAIMS: &str = ".eyJ";

fn samples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../infra/five-calls")
}

/// HTTPS in front of the simulator's login host and of its Graph.
struct TlsProxy {
    _process: Child,
    certificate: PathBuf,
    login: String,
    graph: String,
}

impl TlsProxy {
    async fn start(python: &Path, folder: &Path, upstreams: [&str; 2]) -> Self {
        let certificate = folder.join("certificate.pem");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("journey/tls_proxy.py");
        let mut process = Command::new(python)
            .arg(script)
            .arg(&certificate)
            .args(upstreams)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let urls = lines.next_line().await.unwrap().expect("the proxy prints its URLs");
        let [login, graph]: [String; 2] = urls.split(' ').map(str::to_owned).collect::<Vec<_>>().try_into().unwrap();
        Self { _process: process, certificate, login, graph }
    }
}

/// A folder with a program of each of these names that notes its arguments in `arguments` and then runs the real one.
fn noting_programs(folder: &Path, programs: &[(&str, &str)]) -> PathBuf {
    let log = folder.join("arguments");
    fs::write(&log, "").unwrap();
    for (name, real) in programs {
        let file = folder.join(name);
        let script = format!("#!/bin/sh\nprintf '%s\\n' \"$@\" >> '{}'\nexec {real} \"$@\"\n", log.display());
        fs::write(&file, script).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    }
    log
}

struct Samples<'a> {
    harness: &'a StackHarness,
    python: PathBuf,
    folder: PathBuf,
    proxy: TlsProxy,
}

impl Samples<'_> {
    async fn run(&self, sample: &str, arguments: &[&str]) -> Output {
        let file = samples().join(sample);
        let mut command = if file.extension().is_some_and(|extension| extension == "py") {
            let mut command = Command::new(&self.python);
            command.arg(file);
            command
        } else {
            Command::new(file)
        };
        let aws = self.harness.stack.aws().endpoint();
        command
            .args(arguments)
            .env_clear()
            .env("PATH", format!("{}:/usr/local/bin:/usr/bin:/bin", self.folder.display()))
            .env("MANDATE_API", self.harness.stack.api_url())
            .env("AWS_REGION", "eu-central-1")
            .env("AWS_DEFAULT_REGION", "eu-central-1")
            .env("AWS_ACCESS_KEY_ID", "AKIDLOCAL")
            .env("AWS_SECRET_ACCESS_KEY", AWS_SECRET)
            .env("AWS_ENDPOINT_URL_SECRETS_MANAGER", aws)
            .env("CREDENTIAL_SECRET_ID", &self.harness.stack.resources().secret)
            .env("CLIENT_ID", CLIENT_ID)
            .env("LOGIN_HOST", &self.proxy.login)
            .env("GRAPH_HOST", &self.proxy.graph)
            .env("CURL_CA_BUNDLE", &self.proxy.certificate)
            .env("REQUESTS_CA_BUNDLE", &self.proxy.certificate)
            .kill_on_drop(true);
        command.output().await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn samples_of_the_five_calls_run() {
    let harness = StackHarness::start("five-calls", &[]).await;
    harness.seed(&CONTOSO);
    let ids: Vec<String> = (0..3).map(|number| harness.incident(&CONTOSO, "Phish", 10 + number)).collect();
    harness.onboard(&CONTOSO, None).await;
    let python = interpreter().await.unwrap();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("five-calls");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    let log = noting_programs(&folder, &[("curl", "/usr/bin/curl"), ("python3", &python.display().to_string())]);
    let proxy = TlsProxy::start(&python, &folder, [harness.sim.entra_url(), harness.sim.graph_url()]).await;
    let samples = Samples { harness: &harness, python, folder, proxy };
    for (round, sample) in SAMPLES.into_iter().enumerate() {
        // The sample changes the oldest one, so that the order of the others stays.
        harness.sim.change_incident_silently(CONTOSO.tenant_id, &ids[2], |incident| {
            "active".clone_into(&mut incident.status);
            incident.last_update = incident.created;
        });
        let output = samples.run(sample, &[CONTOSO.tenant_id, &ids[2]]).await;
        let (printed, errors) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
        assert!(output.status.success(), "{sample}: {printed}{errors}");
        for line in [
            "SecurityIncident.ReadWrite.All".to_owned(),
            format!("incidents: {} {}\n", ids[0], ids[1]),
            format!("next page: {}\n", ids[2]),
            format!("changed: {} inProgress\n", ids[2]),
        ] {
            assert!(printed.contains(&line), "{sample} does not print {line:?}: {printed}{errors}");
        }
        assert!(!printed.contains(JWT_CLAIMS), "{sample} prints a token: {printed}");
        let changed = harness.sim.incident(CONTOSO.tenant_id, &ids[2]).unwrap();
        assert_eq!((changed.status.as_str(), changed.comments.len()), ("inProgress", round.min(1) + 1), "{sample}");
    }
    // Neither the caller's key, nor the client secret, nor a token was an argument of a program.
    let arguments = fs::read_to_string(log).unwrap();
    assert!(arguments.contains("--aws-sigv4") && arguments.contains("oauth2/v2.0/token"), "{arguments}");
    let client_secrets = harness.sim.client_secrets(CLIENT_ID);
    for secret in client_secrets.iter().map(String::as_str).chain([AWS_SECRET, JWT_CLAIMS]) {
        assert!(!arguments.contains(secret), "{secret} was an argument");
    }
    let missing = samples.run("mandate.py", &["99999999-9999-4999-8999-999999999999"]).await;
    assert!(!missing.status.success() && String::from_utf8_lossy(&missing.stderr).contains("not_found"));
    drop(samples);
    harness.end().await;
}
