"""The whole product on one machine: embedded server, web, worker launcher and Flower as child processes."""
