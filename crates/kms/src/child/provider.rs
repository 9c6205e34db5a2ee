//! A provider as it is configured: what it needs of the system, and the key service that it is once that is granted.
//!
//! What always holds: a provider that is asked on the way (the one that wraps a master key) is granted what it needs, and no
//! more; what is opened is given to one place that knows of no kind ([`Visitor`]).

use std::sync::Arc;

use sealvol_control::keychild::{Provider, Service};
use sealvol_crypto::locked::KeyMemory;

use crate::aws_kms::{self, AwsKms};
use crate::azure::{self, Azure};
use crate::confinement::Needs;
use crate::local::{self, Local, wrapped};
use crate::pkcs11::{self, Pkcs11};
use crate::tpm2::{self, Tpm2};
use crate::transit::{self, Transit};
use crate::{KeyService, Refusal};

/// What is done with a key service, whichever kind it is.
pub(super) trait Visitor {
    /// What comes of it.
    type Output;

    /// Does it with one that was opened, or could not be.
    fn visit<S: KeyService>(self, opened: Result<S, Refusal>) -> Self::Output;
}

/// What a provider needs, with the one that it asks for its master key. `create`: it may make what is missing.
pub(super) fn needs(provider: &Provider, create: bool) -> Result<Needs, Refusal> {
    match &provider.service {
        Service::AwsKms(service) => aws_kms::needs(&provider.name, service),
        Service::AzureKv(service) => azure::needs(service),
        Service::Local(service) => {
            let own = local::needs(service, create)?;
            match (service.wrapped_master_key(), service.asks()) {
                (Some(master_key), Some(asked)) => needs(asked, false)
                    .map(|asked| own.and(asked))
                    .map_err(|refusal| wrapped::through(&master_key.by, refusal)),
                _ => Ok(own),
            }
        }
        Service::Pkcs11(service) => pkcs11::needs(service),
        Service::Tpm2(service) => tpm2::needs(service, create),
        Service::Transit(service) => transit::needs(service),
    }
}

/// Opens a provider that is no `local` one: those are opened with what came with their batch.
pub(super) fn open<V: Visitor>(
    provider: &Provider,
    needs: &Needs,
    memory: &Arc<KeyMemory>,
    visitor: V,
) -> V::Output {
    let (name, found) = (&provider.name, &needs.connect[..]);
    match &provider.service {
        Service::AwsKms(service) => visitor.visit(AwsKms::open(name, service, found, memory)),
        Service::AzureKv(service) => visitor.visit(Azure::open(name, service, found, memory)),
        Service::Local(_) => visitor.visit::<Local>(Err(Refusal::Configuration {
            provider: name.clone(),
            reason: "one of the type `local` wraps no master key".to_owned(),
        })),
        Service::Pkcs11(service) => visitor.visit(Pkcs11::open(name, service, memory)),
        Service::Tpm2(service) => visitor.visit(Ok(Tpm2::new(name, service, memory))),
        Service::Transit(service) => visitor.visit(Transit::open(name, service, found, memory)),
    }
}
