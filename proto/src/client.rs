//! A typed client on reqwest, kubeconfig files and informers.
