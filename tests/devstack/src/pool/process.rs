//! One process of a function, from its start to its exit.

use std::{path::Path, process::Stdio, sync::Arc};

use tokio::{
    process::{Child, Command},
    sync::{Notify, mpsc, watch},
    task::AbortHandle,
};

use super::FunctionSpec;
use crate::{
    error::FunctionError,
    log_book::{Channel, LogBook},
    runtime_api::{Invocation, Mailbox, RuntimeApi},
};

/// A running process. Dropping the last handle kills it.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) invocations: mpsc::Sender<Invocation>,
    mailbox: Arc<Mailbox>,
    kill: Arc<Notify>,
    exit_status: watch::Receiver<Option<String>>,
    supervisor: AbortHandle,
}

impl Drop for Process {
    fn drop(&mut self) {
        // The supervisor owns the child, which is killed with it.
        self.supervisor.abort();
    }
}

impl Process {
    /// Starts a process of a program; `number` tells it apart from the function's others.
    pub(super) fn start(
        spec: &FunctionSpec,
        program: &Path,
        number: u64,
        runtime: &Arc<RuntimeApi>,
        logs: &Arc<LogBook>,
    ) -> Result<Self, FunctionError> {
        let (invocations, mailbox) = runtime.register(&spec.name, number);
        let mut child = Command::new(program)
            .env_clear()
            .envs(&spec.environment)
            .env("AWS_LAMBDA_RUNTIME_API", runtime.base_url(&spec.name, number))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A Ctrl-C in the terminal reaches the stack alone, which then ends the processes in its own order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| {
                runtime.unregister(&spec.name, number);
                let message = format!("{} cannot be started: {error}", program.display());
                FunctionError::new("Runtime.InvalidEntrypoint", message)
            })?;
        if let Some(pipe) = child.stdout.take() {
            tokio::spawn(Arc::clone(logs).copy(spec.binary.clone(), Channel::Stdout, pipe));
        }
        if let Some(pipe) = child.stderr.take() {
            tokio::spawn(Arc::clone(logs).copy(spec.binary.clone(), Channel::Stderr, pipe));
        }
        let (exited, exit_status) = watch::channel(None);
        let kill = Arc::new(Notify::new());
        let (runtime, function, kill_requested) = (Arc::clone(runtime), spec.name.clone(), Arc::clone(&kill));
        let supervisor = tokio::spawn(async move {
            let status = wait_or_kill(&mut child, &kill_requested).await;
            runtime.unregister(&function, number);
            let status = status.map_or_else(|error| error.to_string(), |status| status.to_string());
            // Nobody listens when the pool has been dropped.
            let _ = exited.send(Some(status));
        })
        .abort_handle();
        Ok(Self { invocations, mailbox, kill, exit_status, supervisor })
    }

    /// Requests the kill; [`Process::exited`] waits for its effect.
    pub(super) fn kill(&self) {
        self.kill.notify_one();
    }

    /// Waits for the exit and returns the exit status as text.
    pub(super) async fn exited(&self) -> String {
        let mut exit_status = self.exit_status.clone();
        match exit_status.wait_for(Option::is_some).await {
            Ok(status) => status.clone().unwrap_or_default(),
            Err(_) => "the process was abandoned".to_owned(),
        }
    }

    pub(super) fn is_alive(&self) -> bool {
        self.exit_status.borrow().is_none()
    }

    /// The error that the process reported while it initialised.
    pub(super) fn init_error(&self) -> Option<FunctionError> {
        self.mailbox.init_error()
    }
}

async fn wait_or_kill(child: &mut Child, kill: &Notify) -> std::io::Result<std::process::ExitStatus> {
    tokio::select! {
        status = child.wait() => status,
        () = kill.notified() => {
            // The process may have ended by itself already.
            let _ = child.start_kill();
            child.wait().await
        }
    }
}
