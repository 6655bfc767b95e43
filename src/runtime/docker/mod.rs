//! Docker Engine, and Podman through the same API.
