#!/bin/sh
# The Model Zoo's style checks on the scripts of a bundle, in an environment of their own.
#
#     python3.11 -m venv style
#     style/bin/pip install isort==9.0.2 black==26.10.1 flake8==7.5.0 pytype==2024.10.11
#     PATH="$PWD/style/bin:$PATH" tools/clients/style.sh BUNDLE
set -e
cd "$1"
isort --check --profile black --line-length 120 scripts
black --check --line-length 120 --skip-magic-trailing-comma scripts
flake8 --max-line-length 120 --extend-ignore E203,E501 scripts  # as the zoo's own settings
pytype -k -P . -d import-error scripts
