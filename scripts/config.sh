# Sourced by train.sh and test.sh: sets $config to the first argument if that is a YAML file, else to configs/Gan.yaml.

config="$root/configs/Gan.yaml"
case "${1-}" in
    *.yaml | *.yml)
        config=$1
        shift
        ;;
esac
