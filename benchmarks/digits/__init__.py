"""The demo's two models: trained here, once; `python -m benchmarks.digits` writes them into the
package."""
